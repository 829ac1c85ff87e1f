/* The sum of squares of a network's problem, for marquardt.h: the contract's descend().
 *
 * normal_equations() gives the linear model, jtr_at() the second derivative along a step.
 */

typedef struct {
    search search; /* first, so that its functions find the rest */
    fb_plan *plan;
    const fb_problem *problem;
    fb_outputs records[2]; /* of the layers' outputs, at d->params and at the trial */
    int is_recorded;
} network_search;

/* The record of the outputs at d->params or at the trial, which take turns with each step; null if
 * outputs are not recorded. */
static fb_outputs *record_of(network_search *s, int at_trial)
{
    idx taken = (idx)s->search.d->state[FB_NIT];
    return s->is_recorded ? s->records + (taken + at_trial) % 2 : NULL;
}

static fb_rho rho_of(const fb_descent *d) { return (fb_rho){(int)d->rho, d->rho_scale}; }

static int linearise_network(search *general, int at_trial, double *squares)
{
    network_search *s = (network_search *)(void *)general;
    fb_descent *d = general->d;
    const real *at = at_trial ? general->trial : d->params;
    return normal_equations(s->plan, s->problem, at, (idx)d->threads, rho_of(d),
                            record_of(s, at_trial), d->normal, squares);
}

static int network_sum_at_trial(search *general)
{
    network_search *s = (network_search *)(void *)general;
    fb_outputs *there = record_of(s, 1);
    if (there) there->recorded = 0;
    return normal_equations(s->plan, s->problem, general->trial, (idx)general->d->threads,
                            rho_of(general->d), there, NULL, &general->squares);
}

static int network_jtr_at_moved(search *general)
{
    network_search *s = (network_search *)(void *)general;
    fb_descent *d = general->d;
    return jtr_at(s->plan, s->problem, d->params, general->moved, (idx)d->threads, rho_of(d),
                  record_of(s, 0), general->bend);
}

static const sum_functions network_functions = {linearise_network, network_sum_at_trial,
                                                network_jtr_at_moved, NULL, 0};

/* Whether the layers' outputs are recorded: where they fit into the cache, for one worker, and if
 * no activation needs Z. */
static int records_outputs(const fb_plan *plan, idx n, idx threads)
{
    enum { MOST = 1 << 20 }; /* bytes */
    for (idx l = 0; l < plan->n_layers; l++)
        if (plan->layers[l].z_column >= 0) return 0;
    return useful_workers(n, threads) == 1 &&
           size_of_outputs(plan, n) * (idx)sizeof(real) <= MOST;
}

/* How many numbers the table of an fb_outputs takes. */
INLINE idx size_of_table(const fb_plan *plan)
{
    return round_up(plan->n_layers * (idx)(sizeof(block) / sizeof(real)));
}

/* The public function: up to d->steps steps; returns how many it took, or FB_NO_MEMORY. */
static int descend(fb_plan *plan, const fb_problem *problem, fb_descent *d)
{
    idx n = (idx)problem->n;
    network_search s = {.search = {.sum = &network_functions,
                                   .d = d,
                                   .n = plan->n_free,
                                   .n_params = plan->n_params,
                                   .free = plan->free},
                        .plan = plan,
                        .problem = problem,
                        .is_recorded = records_outputs(plan, n, (idx)d->threads)};
    idx record = s.is_recorded ? size_of_table(plan) + size_of_outputs(plan, n) : 0;
    buffers B;
    needs need = {0, 0, 0, 2 * record + size_of_search(plan->n_free, plan->n_params)};
    if (!take_buffers(&B, plan, need)) return FB_NO_MEMORY;
    s.search.pack = B.pack;
    for (idx i = 0; s.is_recorded && i < 2; i++) {
        real *place = B.extra + i * record;
        s.records[i].table = (block *)(void *)place, s.records[i].Y = place + size_of_table(plan);
    }
    lay_out_search(&s.search, B.extra + 2 * record);
    int code = begin(&s.search, 1);
    if (code >= 0) code = take_steps(&s.search, d->records);
    give_buffers(&B, plan);
    return code;
}
