/* A clock that jumps, for LD_PRELOAD: each call of it may find another year. FIRE_CLOCK is a seed.
   The steady clock goes on as it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static const long long JUMPS[] = {0, 1, -1, 3600, -3600, 86400 * 40LL, -86400 * 40LL,
                                  86400 * 365LL * 20, -86400 * 365LL * 20};
static unsigned long long state;
static long long offset;

static long long jumped(void) {
    if (!state) {
        const char *seed = getenv("FIRE_CLOCK");
        state = (seed ? strtoull(seed, 0, 10) : 0) * 2 + 1;
    }
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    if ((state >> 40) % 8 == 0)
        offset = JUMPS[(state >> 33) % (sizeof JUMPS / sizeof *JUMPS)];
    return offset;
}

int clock_gettime(clockid_t which, struct timespec *found) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(which, found);
    if (!status && which == CLOCK_REALTIME)
        found->tv_sec += jumped();
    return status;
}

int gettimeofday(struct timeval *found, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found)
        *found = now.tv_sec;
    return now.tv_sec;
}
