/* What lies between a node and its disk and clock: a library that is loaded before the C library (LD_PRELOAD).
 *
 * Orders come from, and counts go to, a file that this process and its tormentor both map (CHAOS_SHIM names it): an
 * array of 64-bit cells, laid out as in shim.py. Orders may change at any moment and hold from the next call on.
 *
 * 1. Syncs. For every file the length that a real sync has covered is noted under its inode, and whether its folder was
 *    synced since it was made. The rest is what a loss of power takes. A sync can fail, end the process, be late, or lie: return success and do nothing.
 * 2. Writes to files below a path can fail. Writes to write-ahead logs (*.log) there can stop in the middle: then the
 *    process ends by SIGKILL, as if the machine had stopped there.
 * 3. What fails or ends can be told to spare some calls first, and to hit only so many: one fault at one call of a run.
 * 4. The wall clock can be off; monotonic clocks are not. Waits until a moment of the wall clock are put back, as the
 *    kernel would have moved its own clock. (A wait that has begun when the offset changes ends as first meant.)
 *
 * Not caught: writes through mapped memory, writes that the C library makes for itself (stdio), direct system calls, and
 * that renames and removals are not durable before their folder is synced.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    MAGIC, CLOCK_OFFSET_NS, SYNC_ERRNO, SYNC_LIES, SYNC_DELAY_MS, WRITE_ERRNO, TEAR_AFTER_BYTES, FREE_BYTES,
    SYNC_KILLS, SKIP_CALLS, HIT_CALLS,
    SYNCS = 16, SYNCS_FAILED, SYNCS_LIED, SYNCS_DELAYED, WRITES_SEEN, WRITES_FAILED, WRITES_TORN, CLOCK_SHIFTED,
    WAITS_SHIFTED, ROOM_SHIFTED, TABLE_FULL,
    PATH = 32, TABLE = 96, FILES_MAX = 16384, INODE = 0, LENGTH, NAMED, ROW, CELLS = TABLE + ROW * FILES_MAX
};
static const int64_t MAGIC_VALUE = 0x31307368696d6350;
static volatile int64_t *cells;

static int64_t order(int cell) { return cells ? __atomic_load_n(&cells[cell], __ATOMIC_RELAXED) : 0; }
static void count(int cell) { if (cells) __atomic_fetch_add(&cells[cell], 1, __ATOMIC_RELAXED); }

/* Whether it is the turn of this call to be hit: after so many that are spared, so many (all, if negative). */
static int hit(void) {
    if (__atomic_fetch_sub(&cells[SKIP_CALLS], 1, __ATOMIC_RELAXED) > 0) return 0;
    int64_t left = order(HIT_CALLS);
    while (left > 0 && !__atomic_compare_exchange_n(&cells[HIT_CALLS], &left, left - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return left != 0;
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("CHAOS_SHIM");
    int descriptor = file ? open(file, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, CELLS * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped != MAP_FAILED && ((int64_t *)mapped)[MAGIC] == MAGIC_VALUE) cells = mapped;
}

#define REAL(result, name, ...)                                  \
    static result (*real)(__VA_ARGS__);                          \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* What is durable: for each inode the length of its file, and whether a sync of a folder has covered a name of it. */

static volatile int64_t *row(ino_t inode) {
    uint64_t at = (uint64_t)inode * 0x9e3779b97f4a7c15u >> 50;
    for (int tries = 0; tries < FILES_MAX; tries++, at = (at + 1) % FILES_MAX) {
        volatile int64_t *found = &cells[TABLE + ROW * at];
        int64_t mine = 0;
        if (__atomic_compare_exchange_n(found, &mine, (int64_t)inode, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) ||
            mine == (int64_t)inode)
            return found;
    }
    count(TABLE_FULL);
    return NULL;
}

static void note(ino_t inode, int what, int64_t value) {
    volatile int64_t *found = row(inode);
    if (found) __atomic_store_n(&found[what], value, __ATOMIC_RELEASE);
}

static int named(ino_t inode) {
    volatile int64_t *found = row(inode);
    return found && __atomic_load_n(&found[NAMED], __ATOMIC_ACQUIRE);
}

static void note_names(int folder) {
    int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = again < 0 ? NULL : fdopendir(again);
    if (!names) return;
    for (struct dirent *entry; (entry = readdir(names));)
        if (entry->d_type == DT_REG) note(entry->d_ino, NAMED, 1);
    closedir(names);
}

static void forget(int folder, const char *path) {
    struct stat found;
    if (cells && fstatat(folder, path, &found, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(found.st_mode) && found.st_nlink == 1) {
        note(found.st_ino, LENGTH, 0);
        note(found.st_ino, NAMED, 0);
    }
}

static int synced(int descriptor, int (*real)(int)) {
    struct stat before;
    if (!cells) return real(descriptor);
    int64_t delay_ms = order(SYNC_DELAY_MS);
    if (delay_ms > 0) {
        struct timespec pause = {delay_ms / 1000, delay_ms % 1000 * 1000000};
        count(SYNCS_DELAYED);
        nanosleep(&pause, NULL);
    }
    int error = (int)order(SYNC_ERRNO), kills = (int)order(SYNC_KILLS);
    if ((error || kills) && hit()) {
        count(SYNCS_FAILED);
        if (kills) end();
        errno = error;
        return -1;
    }
    if (order(SYNC_LIES)) {
        count(SYNCS_LIED);
        return 0;
    }
    /* What was there before: what comes during the sync may not be covered. */
    int known = fstat(descriptor, &before) == 0, result = real(descriptor);
    if (result == 0) {
        count(SYNCS);
        if (known && S_ISREG(before.st_mode)) note(before.st_ino, LENGTH, before.st_size);
        if (known && S_ISDIR(before.st_mode)) note_names(descriptor);
    }
    return result;
}

int fsync(int descriptor) { REAL(int, fsync, int); return synced(descriptor, real); }
int fdatasync(int descriptor) { REAL(int, fdatasync, int); return synced(descriptor, real); }

int unlink(const char *path) { REAL(int, unlink, const char *); forget(AT_FDCWD, path); return real(path); }
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    forget(folder, path);
    return real(folder, path, flags);
}
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    struct stat old, fresh;
    /* A name that is durable stays so: it is the old file's or the new one's, and never nobody's. */
    int stays = cells && lstat(to, &old) == 0 && named(old.st_ino) && lstat(from, &fresh) == 0;
    forget(AT_FDCWD, to);
    int result = real(from, to);
    if (result == 0 && stays) note(fresh.st_ino, NAMED, 1);
    return result;
}

/* Writes. */

static int meant(int descriptor, int logs_only) {
    char link[32], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (logs_only && (length < 4 || strcmp(path + length - 4, ".log") != 0)) return 0;
    const char *prefix = (const char *)&cells[PATH];
    return prefix[0] && strncmp(path, prefix, strlen(prefix)) == 0;
}

/* What to do with a write of `size` bytes: -1 let it pass, -2 fail, else write so many bytes and end. */
static int64_t judged(int descriptor, size_t size) {
    int64_t tear = order(TEAR_AFTER_BYTES), error = order(WRITE_ERRNO);
    if (!cells || (tear < 0 && !error) || !size || !meant(descriptor, !error)) return -1;
    count(WRITES_SEEN);
    if (!hit()) return -1;
    if (error) {
        count(WRITES_FAILED);
        errno = (int)error;
        return -2;
    }
    count(WRITES_TORN);
    return tear < (int64_t)size ? tear : (int64_t)size - 1;
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    int64_t verdict = judged(descriptor, size);
    if (verdict == -1) return real(descriptor, bytes, size);
    if (verdict == -2) return -1;
    if (verdict) real(descriptor, bytes, (size_t)verdict);
    end();
    return -1;
}

#define POSITIONED(name, offset_type)                                                        \
    ssize_t name(int descriptor, const void *bytes, size_t size, offset_type offset) {       \
        REAL(ssize_t, name, int, const void *, size_t, offset_type);                         \
        int64_t verdict = judged(descriptor, size);                                          \
        if (verdict == -1) return real(descriptor, bytes, size, offset);                     \
        if (verdict == -2) return -1;                                                        \
        if (verdict) real(descriptor, bytes, (size_t)verdict, offset);                       \
        end();                                                                               \
        return -1;                                                                           \
    }
POSITIONED(pwrite, off_t)
POSITIONED(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *parts, int parts_count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    int64_t verdict = judged(descriptor, parts_count > 0 ? parts[0].iov_len : 0);
    if (verdict == -1) return real(descriptor, parts, parts_count);
    if (verdict == -2) return -1;
    struct iovec first = {parts[0].iov_base, (size_t)verdict};
    if (verdict) real(descriptor, &first, 1);
    end();
    return -1;
}

/* Room. */

#define ROOM(name, type)                                                                          \
    int name(const char *path, struct type *room) {                                               \
        REAL(int, name, const char *, struct type *);                                             \
        int result = real(path, room);                                                            \
        int64_t free_bytes = order(FREE_BYTES);                                                   \
        if (result == 0 && cells && free_bytes >= 0 && room->f_frsize) {                          \
            count(ROOM_SHIFTED);                                                                  \
            room->f_bfree = room->f_bavail = (fsblkcnt_t)free_bytes / room->f_frsize;             \
        }                                                                                         \
        return result;                                                                            \
    }
ROOM(statvfs, statvfs)
ROOM(statvfs64, statvfs64)

/* The wall clock. */

static void shift(struct timespec *moment, int64_t by_ns) {
    int64_t nanoseconds = moment->tv_nsec + by_ns % 1000000000;
    moment->tv_sec += by_ns / 1000000000 + (nanoseconds < 0 ? -1 : nanoseconds / 1000000000);
    moment->tv_nsec = nanoseconds < 0 ? nanoseconds + 1000000000 : nanoseconds % 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *moment) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real(clock, moment);
    int64_t offset_ns = order(CLOCK_OFFSET_NS);
    if (result == 0 && offset_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        count(CLOCK_SHIFTED);
        shift(moment, offset_ns);
    }
    return result;
}

int gettimeofday(struct timeval *restrict moment, void *restrict zone) {
    REAL(int, gettimeofday, struct timeval *, void *);
    int result = real(moment, zone);
    int64_t offset_ns = order(CLOCK_OFFSET_NS);
    if (result == 0 && offset_ns) {
        struct timespec fine = {moment->tv_sec, moment->tv_usec * 1000};
        count(CLOCK_SHIFTED);
        shift(&fine, offset_ns);
        moment->tv_sec = fine.tv_sec;
        moment->tv_usec = fine.tv_nsec / 1000;
    }
    return result;
}

time_t time(time_t *moment) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (moment) *moment = now.tv_sec;
    return now.tv_sec;
}

/* A moment on the kernel's clock. Monotonic moments, which some of these calls take too, are decades smaller. */
static const struct timespec *unshifted(const struct timespec *moment, struct timespec *room) {
    int64_t offset_ns = order(CLOCK_OFFSET_NS);
    if (!offset_ns || !moment || moment->tv_sec < 1000000000) return moment;
    count(WAITS_SHIFTED);
    *room = *moment;
    shift(room, -offset_ns);
    return room;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict moment) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec room;
    /* Where there are two versions of it, the plain lookup may find the one of old. */
    if (!real) *(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return real(condition, mutex, unshifted(moment, &room));
}

int pthread_cond_clockwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict moment) {
    REAL(int, pthread_cond_clockwait, pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
    struct timespec room;
    return real(condition, mutex, clock, unshifted(moment, &room));
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict moment) {
    REAL(int, sem_timedwait, sem_t *, const struct timespec *);
    struct timespec room;
    return real(semaphore, unshifted(moment, &room));
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict moment) {
    REAL(int, sem_clockwait, sem_t *, clockid_t, const struct timespec *);
    struct timespec room;
    return real(semaphore, clock, unshifted(moment, &room));
}

long syscall(long number, ...) {
    REAL(long, syscall, long, ...);
    va_list given;
    long argument[6];
    struct timespec room;
    va_start(given, number);
    for (int each = 0; each < 6; each++) argument[each] = va_arg(given, long);
    va_end(given);
    if (number == SYS_futex && (argument[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET)
        argument[3] = (long)unshifted((const struct timespec *)argument[3], &room);
    return real(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}
