/* Threads that share the parts of a call's work; see core/internal.h.
 *
 * They are started by the call that wants them and have ended when it returns, so that a process
 * may fork whenever no call runs. Between two shares of one call they spin for some microseconds,
 * as the next step of a training run is not far, and sleep then. The caller waits for members that
 * have begun a part, not for those that the system has not yet woken.
 */
#include "core/internal.h"

#if !defined(_WIN32) && __has_include(<pthread.h>)

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPINS = 2000 };

typedef struct {
    fb_team *team;
    idx number;
    pthread_t thread;
} member;

struct fb_team {
    pthread_mutex_t lock; /* for all fields that are not atomic */
    pthread_cond_t changed;
    _Atomic idx round; /* counts the shares; members wait for the next one */
    _Atomic idx busy; /* members at work */
    _Atomic idx next; /* part to begin */
    _Atomic idx merged; /* parts merged */
    const fb_work *work; /* null between shares */
    int ended;
    int merging; /* whether a worker is at it */
    char computed[FB_MOST_PARTS];
    idx size; /* of the members: workers besides the caller */
    member members[FB_MOST_PARTS];
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_while(fb_team *team, const _Atomic idx *value, idx old)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(value) != old) return;
        relax();
    }
    pthread_mutex_lock(&team->lock);
    while (atomic_load(value) == old) pthread_cond_wait(&team->changed, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

/* Merge what is computed, up to the first part that is not; one worker does it for all. */
static void merge(fb_team *team, const fb_work *work, idx part)
{
    pthread_mutex_lock(&team->lock);
    team->computed[part] = 1;
    if (!team->merging) {
        team->merging = 1;
        for (idx m; (m = atomic_load(&team->merged)) < work->parts && team->computed[m];) {
            pthread_mutex_unlock(&team->lock);
            work->merge(work->context, m);
            pthread_mutex_lock(&team->lock);
            atomic_store(&team->merged, m + 1);
        }
        team->merging = 0;
        pthread_cond_broadcast(&team->changed);
    }
    pthread_mutex_unlock(&team->lock);
}

/* Begin parts and finish them as long as there are any. */
static void take_parts(fb_team *team, const fb_work *work, idx worker)
{
    idx part, merged;
    while ((part = atomic_fetch_add(&team->next, 1)) < work->parts) {
        while ((merged = atomic_load(&team->merged)) <= part - work->window)
            wait_while(team, &team->merged, merged);
        work->compute(work->context, worker, part);
        if (work->merge) merge(team, work, part);
    }
}

static void *live(void *itself)
{
    member *me = itself;
    fb_team *team = me->team;
    idx round = 0;
    for (;;) {
        wait_while(team, &team->round, round);
        pthread_mutex_lock(&team->lock);
        round = atomic_load(&team->round);
        int ended = team->ended;
        const fb_work *work = team->work;
        if (work) atomic_fetch_add(&team->busy, 1);
        pthread_mutex_unlock(&team->lock);
        if (ended) return NULL;
        if (!work) continue; /* the others have done it all */
        take_parts(team, work, me->number);
        pthread_mutex_lock(&team->lock);
        if (atomic_fetch_sub(&team->busy, 1) == 1) pthread_cond_broadcast(&team->changed);
        pthread_mutex_unlock(&team->lock);
    }
}

static void call_members(fb_team *team, const fb_work *work, int ended)
{
    pthread_mutex_lock(&team->lock);
    team->work = work;
    team->ended = ended;
    for (idx i = 0; i < FB_MOST_PARTS; i++) team->computed[i] = 0;
    atomic_store(&team->next, 0);
    atomic_store(&team->merged, 0);
    atomic_fetch_add(&team->round, 1);
    pthread_cond_broadcast(&team->changed);
    pthread_mutex_unlock(&team->lock);
}

fb_team *fb_team_new(idx workers)
{
    if (workers < 2) return NULL;
    fb_team *team = calloc(1, sizeof *team);
    if (!team) return NULL;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->changed, NULL);
    for (; team->size < workers - 1; team->size++) {
        member *fresh = team->members + team->size;
        fresh->team = team;
        fresh->number = team->size + 1;
        if (pthread_create(&fresh->thread, NULL, live, fresh) != 0) break;
    }
    return team;
}

void fb_team_free(fb_team *team)
{
    if (!team) return;
    call_members(team, NULL, 1);
    for (idx i = 0; i < team->size; i++) pthread_join(team->members[i].thread, NULL);
    pthread_cond_destroy(&team->changed);
    pthread_mutex_destroy(&team->lock);
    free(team);
}

static void share_with(fb_team *team, const fb_work *work)
{
    call_members(team, work, 0);
    take_parts(team, work, 0);
    pthread_mutex_lock(&team->lock);
    team->work = NULL;
    pthread_mutex_unlock(&team->lock);
    for (idx busy; (busy = atomic_load(&team->busy)) > 0;) wait_while(team, &team->busy, busy);
}

#else

fb_team *fb_team_new(idx workers)
{
    (void)workers;
    return NULL;
}

void fb_team_free(fb_team *team) { (void)team; }

static void share_with(fb_team *team, const fb_work *work)
{
    (void)team;
    (void)work;
}

#endif

void fb_share(fb_team *team, const fb_work *work)
{
    if (team) {
        share_with(team, work);
        return;
    }
    for (idx part = 0; part < work->parts; part++) {
        work->compute(work->context, 0, part);
        if (work->merge) work->merge(work->context, part);
    }
}
