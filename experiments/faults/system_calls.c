/* Loaded before the C library by LD_PRELOAD. Of the calls on paths in FAULT_FOLDER it fails the one
   that FAULT_CALL and FAULT_NAME say, with FAULT_ERRNO; or it appends all of them to FAULT_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define ORIGINAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* One call after the other, so that the log has their order. */
static pthread_mutex_t turn = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static int is_inside(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    return folder && !strncmp(path, folder, strlen(folder));
}

static int file_path(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return is_inside(path);
}

static int full_path(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] == '/') return snprintf(path, PATH_MAX, "%s", name), is_inside(path);
    if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
    else file_path(folder, base);
    return snprintf(path, PATH_MAX, "%s/%s", base, name), is_inside(path);
}

static int fails(const char *name, const char *path) {
    static long calls;
    const char *chosen = getenv("FAULT_NAME");
    if (!chosen || strcmp(name, chosen) || ++calls != atol(getenv("FAULT_CALL"))) return 0;
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

static void record(
    const char *name, const char *path, const char *other, long offset, const void *data, size_t size
) {
    const char *log = getenv("FAULT_LOG");
    if (!log) return;
    FILE *file = fopen(log, "ab");
    fprintf(file, "%s\t%s\t%s\t%ld\t%zu\n", name, path, other, offset, size);
    fwrite(data, 1, size, file);
    fclose(file);
}

/* A function with one path: its kind is what is failed and recorded. */
#define REPLACE(type, function, kind, find, parameters, arguments, details)      \
    type function parameters {                                                   \
        char path[PATH_MAX], other[PATH_MAX] = "";                               \
        (void)other;                                                             \
        if (!(find)) return ORIGINAL(function) arguments;                        \
        pthread_mutex_lock(&turn);                                               \
        type result = fails(kind, path) ? -1 : ORIGINAL(function) arguments;     \
        int error = errno;                                                       \
        if (result >= 0) record details;                                         \
        errno = error;                                                           \
        pthread_mutex_unlock(&turn);                                             \
        return result;                                                           \
    }

static const char *join(const struct iovec *parts, int count) {
    static char *joined;
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    char *end = joined = realloc(joined, size + 1);
    for (int i = 0; i < count; i++) end = mempcpy(end, parts[i].iov_base, parts[i].iov_len);
    return joined;
}

#define AT(folder, name) full_path(folder, name, path)
#define HERE(name) AT(AT_FDCWD, name)
#define PLAIN(kind) (kind, path, "", 0, "", 0)

REPLACE(ssize_t, write, "write", file_path(f, path), (int f, const void *b, size_t n), (f, b, n),
        ("write", path, "", lseek(f, 0, SEEK_CUR) - result, b, result))
REPLACE(ssize_t, pwrite, "write", file_path(f, path),
        (int f, const void *b, size_t n, off_t o), (f, b, n, o),
        ("write", path, "", o, b, result))
REPLACE(ssize_t, pwrite64, "write", file_path(f, path),
        (int f, const void *b, size_t n, off_t o), (f, b, n, o),
        ("write", path, "", o, b, result))
REPLACE(ssize_t, writev, "write", file_path(f, path),
        (int f, const struct iovec *v, int n), (f, v, n),
        ("write", path, "", lseek(f, 0, SEEK_CUR) - result, join(v, n), result))
REPLACE(ssize_t, pwritev, "write", file_path(f, path),
        (int f, const struct iovec *v, int n, off_t o), (f, v, n, o),
        ("write", path, "", o, join(v, n), result))
REPLACE(ssize_t, pwritev64, "write", file_path(f, path),
        (int f, const struct iovec *v, int n, off_t o), (f, v, n, o),
        ("write", path, "", o, join(v, n), result))
REPLACE(int, ftruncate, "truncate", file_path(f, path), (int f, off_t n), (f, n),
        ("truncate", path, "", n, "", 0))
REPLACE(int, ftruncate64, "truncate", file_path(f, path), (int f, off_t n), (f, n),
        ("truncate", path, "", n, "", 0))
REPLACE(int, fsync, "fsync", file_path(f, path), (int f), (f), PLAIN("fsync"))
REPLACE(int, fdatasync, "fsync", file_path(f, path), (int f), (f), PLAIN("fsync"))
REPLACE(int, flock, "flock", file_path(f, path), (int f, int o), (f, o), PLAIN("flock"))
REPLACE(int, mkdir, "mkdir", HERE(p), (const char *p, mode_t m), (p, m), PLAIN("mkdir"))
REPLACE(int, mkdirat, "mkdir", AT(d, p), (int d, const char *p, mode_t m), (d, p, m),
        PLAIN("mkdir"))
REPLACE(int, unlink, "unlink", HERE(p), (const char *p), (p), PLAIN("remove"))
REPLACE(int, rmdir, "rmdir", HERE(p), (const char *p), (p), PLAIN("remove"))
REPLACE(int, unlinkat, o ? "rmdir" : "unlink", AT(d, p), (int d, const char *p, int o), (d, p, o),
        PLAIN("remove"))
REPLACE(int, rename, "rename", HERE(q) && full_path(AT_FDCWD, p, other),
        (const char *p, const char *q), (p, q), ("rename", path, other, 0, "", 0))
REPLACE(int, renameat, "rename", AT(e, q) && full_path(d, p, other),
        (int d, const char *p, int e, const char *q), (d, p, e, q),
        ("rename", path, other, 0, "", 0))

/* Opening creates and empties files; its mode is an optional argument. */
static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define REPLACE_OPEN(function, find, parameters, arguments)                      \
    int function parameters {                                                    \
        char path[PATH_MAX];                                                     \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = mode_of(flags, rest);                                      \
        va_end(rest);                                                            \
        if (!(find)) return ORIGINAL(function) arguments;                        \
        pthread_mutex_lock(&turn);                                               \
        int is_new = access(path, F_OK) && flags & O_CREAT;                      \
        int result = fails("open", path) ? -1 : ORIGINAL(function) arguments;    \
        int error = errno;                                                       \
        if (result >= 0 && is_new) record("create", path, "", 0, "", 0);         \
        if (result >= 0 && flags & O_TRUNC) record("truncate", path, "", 0, "", 0); \
        errno = error;                                                           \
        pthread_mutex_unlock(&turn);                                             \
        return result;                                                           \
    }

REPLACE_OPEN(open, HERE(p), (const char *p, int flags, ...), (p, flags, mode))
REPLACE_OPEN(open64, HERE(p), (const char *p, int flags, ...), (p, flags, mode))
REPLACE_OPEN(openat, AT(d, p), (int d, const char *p, int flags, ...), (d, p, flags, mode))
REPLACE_OPEN(openat64, AT(d, p), (int d, const char *p, int flags, ...), (d, p, flags, mode))
