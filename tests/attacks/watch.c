/* Preloaded into a command by test_system_calls.py: writes what it opens for writing and which sockets it uses to the
   file $R2GEN_TEST_CALLS, a line each. Calls inside libc do not come through here, so their public fronts are listed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

static void say(const char *what, int folder, const char *path) {
    const char *log = getenv("R2GEN_TEST_CALLS");
    char base[4096] = "", link[64], line[9000];
    if (!log) return;
    if (path[0] != '/' && folder != -1) {
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        long size = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 2);
        base[size > 0 ? size : 0] = 0;
        strcat(base, "/");
    }
    int length = snprintf(line, sizeof line, "%s %s%s\n", what, base, path);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, length);
        syscall(SYS_close, fd);
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, int); va_end(more); }

int open(const char *path, int flags, ...) { MODE(flags) if (WRITES(flags)) say("write", AT_FDCWD, path); return NEXT(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) if (WRITES(flags)) say("write", AT_FDCWD, path); return NEXT(open64)(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) if (WRITES(flags)) say("write", at, path); return NEXT(openat)(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) if (WRITES(flags)) say("write", at, path); return NEXT(openat64)(at, path, flags, mode); }
int creat(const char *path, mode_t mode) { say("write", AT_FDCWD, path); return NEXT(creat)(path, mode); }
FILE *fopen(const char *path, const char *how) { if (strpbrk(how, "wa+")) say("write", AT_FDCWD, path); return NEXT(fopen)(path, how); }
FILE *fopen64(const char *path, const char *how) { if (strpbrk(how, "wa+")) say("write", AT_FDCWD, path); return NEXT(fopen64)(path, how); }
int mkdir(const char *path, mode_t mode) { say("write", AT_FDCWD, path); return NEXT(mkdir)(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { say("write", at, path); return NEXT(mkdirat)(at, path, mode); }
int rename(const char *from, const char *to) { say("write", AT_FDCWD, to); return NEXT(rename)(from, to); }

static void peer(const char *what, const struct sockaddr *to) {
    char text[200] = "";
    if (to && to->sa_family == AF_UNIX) snprintf(text, sizeof text, "AF_UNIX %s", ((const struct sockaddr_un *)to)->sun_path);
    else snprintf(text, sizeof text, "family %d", to ? to->sa_family : -1);
    say(what, -1, text);
}

int connect(int fd, const struct sockaddr *to, socklen_t size) { peer("connect", to); return NEXT(connect)(fd, to, size); }
ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    if (to) peer("sendto", to);
    return NEXT(sendto)(fd, data, size, flags, to, length);
}
int getaddrinfo(const char *host, const char *service, const void *hints, void *found) {
    say("lookup", -1, host ? host : "(none)");
    return ((int (*)(const char *, const char *, const void *, void *))dlsym(RTLD_NEXT, "getaddrinfo"))(host, service, hints, found);
}
