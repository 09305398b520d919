/* Preloaded into a process, notes every name that it looks up and every address outside of this machine. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *how, const char *what) {
    char line[600];
    const char *log = getenv("OUTSIDE_LOG");
    if (!log) return;
    int file = open(log, O_WRONLY | O_APPEND | O_CREAT, 0666);
    int length = snprintf(line, sizeof line, "%s %s\n", how, what ? what : "");
    if (file >= 0) { if (write(file, line, length)) {} close(file); }
}

static int here(const struct sockaddr *to) {
    char text[INET6_ADDRSTRLEN] = "";
    if (!to) return 1;
    if (to->sa_family == AF_INET) {
        const struct sockaddr_in *four = (const void *)to;
        if ((ntohl(four->sin_addr.s_addr) >> 24) == 127 || !four->sin_addr.s_addr) return 1;
        inet_ntop(AF_INET, &four->sin_addr, text, sizeof text);
    } else if (to->sa_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const void *)to;
        if (IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) || IN6_IS_ADDR_UNSPECIFIED(&six->sin6_addr)) return 1;
        if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr) && six->sin6_addr.s6_addr[12] == 127) return 1;
        inet_ntop(AF_INET6, &six->sin6_addr, text, sizeof text);
    } else return 1;
    note("address", text);
    return 0;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    REAL(getaddrinfo);
    struct in6_addr any;
    int local = !node || !strcmp(node, "localhost") || !strcmp(node, "0.0.0.0") || !strncmp(node, "127.", 4)
        || !strcmp(node, "::1") || !strcmp(node, "::") || inet_pton(AF_INET, node, &any) || inet_pton(AF_INET6, node, &any);
    if (local) return real(node, service, hints, found);
    note("name", node);
    return EAI_FAIL;
}
struct hostent *gethostbyname(const char *name) {
    REAL(gethostbyname);
    if (!strcmp(name, "localhost")) return real(name);
    note("name", name);
    return NULL;
}
int connect(int socket, const struct sockaddr *to, socklen_t length) {
    REAL(connect);
    if (here(to)) return real(socket, to, length);
    errno = ENETUNREACH;
    return -1;
}
ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    REAL(sendto);
    if (here(to)) return real(socket, data, size, flags, to, length);
    errno = ENETUNREACH;
    return -1;
}
ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
    REAL(sendmsg);
    if (here(message->msg_name)) return real(socket, message, flags);
    errno = ENETUNREACH;
    return -1;
}
