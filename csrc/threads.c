/* Teams of threads, which compute the parts of a call's work; core/internal.h declares them.
 *
 * A call starts its threads and joins them before it returns, so that a process may fork whenever
 * no call runs. A call such as a training run gives its team many works, one a step. Between two of
 * them the members spin for some microseconds, as the next one is not far, and then sleep. The
 * caller waits for members that have begun a part, not for those that the system has not yet woken.
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
    _Atomic idx round; /* counts the works; members wait for the next one */
    _Atomic idx busy; /* members at work */
    _Atomic idx next; /* part to begin */
    _Atomic idx merged; /* parts merged */
    const fb_work *work; /* null between two works */
    int ended;
    int merging; /* whether a worker merges at the moment */
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

/* Return when *value is no longer `old`. */
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

/* Note that a part is computed. Unless another worker merges already, merge all parts that are
 * computed, in order, up to the first one that is not. */
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

/* Compute one part after another as long as there are any. */
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

/* What a thread runs: wait for a work, compute parts of it, until the team ends. */
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

/* Give the members a work, or with `ended` let their threads return. */
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
        member *next = team->members + team->size;
        next->team = team;
        next->number = team->size + 1;
        if (pthread_create(&next->thread, NULL, live, next) != 0) break;
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

static void run_with(fb_team *team, const fb_work *work)
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

static void run_with(fb_team *team, const fb_work *work)
{
    (void)team;
    (void)work;
}

#endif

void fb_team_run(fb_team *team, const fb_work *work)
{
    if (team) {
        run_with(team, work);
        return;
    }
    for (idx part = 0; part < work->parts; part++) {
        work->compute(work->context, 0, part);
        if (work->merge) work->merge(work->context, part);
    }
}
