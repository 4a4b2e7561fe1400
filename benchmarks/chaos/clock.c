/* Preloaded into a run whose clock is to stand still or jump: what says the time of day says what the file named by
   $CHAOS_CLOCK has, two longs: a time at which it stands (0: it does not), and by how many seconds it is off. What
   measures durations goes on. (libfaketime 0.9.10 makes Python 3.11's time.sleep fail.) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *said;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("CHAOS_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, 2 * sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) said = found;
    if (file >= 0) close(file);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, which, now);
    if (result == 0 && said && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        long stands = said[0];
        if (stands) {
            now->tv_sec = stands;
            now->tv_nsec = 0;
        } else {
            now->tv_sec += said[1];
        }
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (into) *into = exact.tv_sec;
    return exact.tv_sec;
}
