/* Threads that share the items of a job.
 *
 * Not OpenMP: its regions end when every thread of the team has arrived, so that on a busy machine
 * each of a step's hundred regions can wait for a thread that is not running, although it has
 * nothing to do. Here a job ends when its items are done, by whichever threads are running.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vectors.h"

enum {
    MAX_THREADS = 1024,
    SPINS = 4000,      /* looks for the next job before a thread sleeps: some 50 to 200 us */
    WAIT_SPINS = 1000, /* looks for the end of the job before the caller lets others run */
};

typedef void (*work_function)(void *context, int64_t item, int thread);

struct pool {
    /* Job number in the upper half, next item in the lower one: an item is claimed by counting up
     * the whole, which fails if the job has changed. Odd numbers: no job, it is being written. */
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic int64_t num_done;
    /* The job; changed only when every item of the one before is done. */
    _Alignas(64) _Atomic(work_function) work;
    _Atomic(void *) context;
    _Atomic int64_t num_items;
    _Alignas(64) _Atomic int num_sleeping;
    _Atomic int stopping;
    pthread_mutex_t mutex;
    pthread_cond_t awake;
    pid_t owner;
    int num_workers;
    pthread_t workers[MAX_THREADS];
};

struct worker {
    struct pool *pool;
    int thread;
};

INLINE void pause_a_little(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Does items of the current job until all are taken; the job's number. */
static uint32_t take_part(struct pool *pool, int thread)
{
    uint64_t ticket = atomic_load(&pool->ticket);
    for (;;) {
        /* What was read is this job, or the claim fails. */
        work_function work = atomic_load(&pool->work);
        void *context = atomic_load(&pool->context);
        int64_t num_items = atomic_load(&pool->num_items);
        const int64_t item = ticket & UINT32_MAX;
        if (item >= num_items && ticket == atomic_load(&pool->ticket))
            return ticket >> 32;
        if (item < num_items && atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1)) {
            work(context, item, thread);
            atomic_fetch_add(&pool->num_done, 1);
        }
        ticket = atomic_load(&pool->ticket);
    }
}

static void *worker_main(void *argument)
{
    struct worker worker = *(struct worker *)argument;
    struct pool *pool = worker.pool;
    free(argument);
    uint32_t seen = 0;
    for (int spins = 0; !atomic_load(&pool->stopping);) {
        if (atomic_load(&pool->ticket) >> 32 != seen) {
            seen = take_part(pool, worker.thread);
            spins = 0;
        } else if (spins++ < SPINS) {
            pause_a_little();
        } else {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->num_sleeping, 1);
            while (atomic_load(&pool->ticket) >> 32 == seen && !atomic_load(&pool->stopping))
                pthread_cond_wait(&pool->awake, &pool->mutex);
            atomic_fetch_sub(&pool->num_sleeping, 1);
            pthread_mutex_unlock(&pool->mutex);
            spins = 0;
        }
    }
    return NULL;
}

/* Does items 0 to num_items - 1 of a job, thread 0 being the caller; returns when all are done.
 *
 * One caller at a time.
 */
static void run(struct pool *pool, work_function work, void *context, int64_t num_items)
{
    if (!pool->num_workers || num_items < 2) {
        for (int64_t item = 0; item < num_items; item++)
            work(context, item, 0);
        return;
    }
    const uint64_t job = (atomic_load(&pool->ticket) >> 32) + 1;
    atomic_store(&pool->ticket, job << 32 | UINT32_MAX);
    atomic_store(&pool->work, work);
    atomic_store(&pool->context, context);
    atomic_store(&pool->num_items, num_items);
    atomic_store(&pool->num_done, 0);
    atomic_store(&pool->ticket, (job + 1) << 32);
    if (atomic_load(&pool->num_sleeping)) {
        pthread_mutex_lock(&pool->mutex);
        for (int64_t i = 1; i < num_items && i <= pool->num_workers; i++)
            pthread_cond_signal(&pool->awake);
        pthread_mutex_unlock(&pool->mutex);
    }
    take_part(pool, 0);
    for (int spins = 0; atomic_load(&pool->num_done) < num_items; spins++)
        if (spins < WAIT_SPINS)
            pause_a_little();
        else
            sched_yield();
}

/* Ends the threads. A process forked since has none of them: it only forgets the pool. */
void pool_stop(struct pool *pool)
{
    if (pool->owner != getpid())
        return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stopping, 1);
    pthread_cond_broadcast(&pool->awake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->num_workers; i++)
        pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->awake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

/* A pool of so many threads, the caller among them, or NULL if they cannot be had. */
struct pool *pool_start(int num_threads)
{
    if (num_threads < 1 || num_threads > MAX_THREADS)
        return NULL;
    struct pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool)
        return NULL;
    memset(pool, 0, sizeof *pool);
    pool->owner = getpid();
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->awake, NULL);
    for (int thread = 1; thread < num_threads; thread++) {
        struct worker *worker = malloc(sizeof *worker);
        if (worker)
            *worker = (struct worker){pool, thread};
        if (!worker
            || pthread_create(&pool->workers[pool->num_workers], NULL, worker_main, worker)) {
            free(worker);
            pool_stop(pool);
            return NULL;
        }
        pool->num_workers++;
    }
    return pool;
}
