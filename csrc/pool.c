/* Workspaces that calls take and give back; see core/internal.h. */
#include "core/internal.h"

#include <stdatomic.h>
#include <stdlib.h>

void fb_pool_init(fb_pool *pool)
{
    for (int i = 0; i < FB_POOL_SLOTS; i++) atomic_init(&pool->slots[i], NULL);
}

void fb_pool_free(fb_pool *pool)
{
    for (int i = 0; i < FB_POOL_SLOTS; i++) free(atomic_load(&pool->slots[i]));
}

fb_workspace *fb_take(fb_pool *pool, size_t size)
{
    fb_workspace *found = NULL;
    for (int i = 0; i < FB_POOL_SLOTS && !found; i++)
        if (atomic_load_explicit(&pool->slots[i], memory_order_relaxed))
            found = atomic_exchange(&pool->slots[i], NULL);
    if (found && found->size >= size) return found;
    free(found);
    size_t total = (sizeof(fb_workspace) + size + 63) / 64 * 64;
    fb_workspace *fresh = aligned_alloc(64, total);
    if (fresh) fresh->size = size;
    return fresh;
}

void fb_give(fb_pool *pool, fb_workspace *workspace)
{
    for (int i = 0; i < FB_POOL_SLOTS; i++) {
        fb_workspace *expected = NULL;
        if (atomic_compare_exchange_strong(&pool->slots[i], &expected, workspace)) return;
    }
    free(workspace);
}
