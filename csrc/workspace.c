/* The pool of workspaces: calls take a block of memory from it and give it back. Lock-free, so that
 * threads that use one plan do not wait for each other; core/internal.h declares the functions. */
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

fb_workspace *fb_pool_take(fb_pool *pool, size_t size)
{
    fb_workspace *workspace = NULL;
    for (int i = 0; i < FB_POOL_SLOTS && !workspace; i++)
        if (atomic_load_explicit(&pool->slots[i], memory_order_relaxed))
            workspace = atomic_exchange(&pool->slots[i], NULL);
    if (workspace && workspace->size >= size) return workspace;
    free(workspace);
    size_t total = (sizeof(fb_workspace) + size + 63) / 64 * 64;
    workspace = aligned_alloc(64, total);
    if (workspace) workspace->size = size;
    return workspace;
}

void fb_pool_give(fb_pool *pool, fb_workspace *workspace)
{
    for (int i = 0; i < FB_POOL_SLOTS; i++) {
        fb_workspace *expected = NULL;
        if (atomic_compare_exchange_strong(&pool->slots[i], &expected, workspace)) return;
    }
    free(workspace);
}
