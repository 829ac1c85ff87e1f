/* Dropout: the factors by which a training step multiplies the layers' outputs. The contract's
 * train() defines them as a function of (seed, step, layer, row, unit), so that all backends draw
 * the same. */

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * FB_MIX_1;
    x = (x ^ x >> 27) * FB_MIX_2;
    return x ^ x >> 31;
}

INLINE uint32_t hash(uint32_t x)
{
    x = (x ^ x >> 16) * FB_HASH_1;
    x = (x ^ x >> 15) * FB_HASH_2;
    return x ^ x >> 16;
}

/* The key of a training step. */
static uint64_t dropout_key(uint64_t seed, int64_t step)
{
    return mix(seed + FB_GOLDEN * ((uint64_t)step + 1));
}

/* B->factors[l] (rows, ld) = 0 or 1/(1 - p), per layer with dropout p, for a tile whose first row
 * is row `first` of its batch. */
static void draw_factors(const fb_plan *plan, const buffers *B, uint64_t step_key, idx first,
                         idx rows)
{
    for (idx l = 0; l < plan->n_layers; l++) {
        block factors = B->factors[l];
        if (!factors.p) continue;
        double p = plan->layers[l].dropout;
        real factor = (real)(1 / (1 - p));
        uint32_t last_dropped = (uint32_t)(ceil(p * 0x1p32) - 1);
        uint64_t key = mix(step_key + FB_GOLDEN * (uint64_t)(l + 1));
        uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
        idx n_out = plan->layers[l].n_out;
        for (idx i = 0; i < rows; i++) {
            uint32_t place = (uint32_t)((first + i) * n_out);
            real *row = factors.p + i * factors.ld;
            for (idx j = 0; j < factors.ld; j++)
                row[j] = hash(hash((place + (uint32_t)j) ^ low) + high) > last_dropped ? factor : 0;
        }
    }
}
