/* spiderpool: the program that a container runtime executes for IPAM.
 *
 * It carries one CNI call over a Unix socket to the Spiderledger agent of this node and prints the agent's answer. It
 * knows nothing about addresses; it answers VERSION itself, and a DEL that gets no answer it puts into the spool, where
 * the agent finds it later. It needs no library on the host, and every size and wait has a limit.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SOCKET_DEFAULT "/var/run/spidernet/spiderpool.sock" /* Spiderpool's, so that its configurations just work. */
#define SPOOL_DEFAULT "/var/lib/spiderledger/spool"
#define NOT_OURS "its answer is not that of a Spiderledger agent"
#define ALPHANUMERIC "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
#define CNI_VERSION_NEWEST "1.1.0"
#define CNI_VERSIONS "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]"

enum { /* bytes, unless the name says otherwise */
    STDIN_MAX = 1 << 20,
    ENVIRONMENT_MAX = 1 << 18,
    REQUEST_HEAD_MAX = 256,
    ANSWER_MAX = 1 << 20,
    ANSWER_HEAD_MAX = 1 << 14,
    MESSAGE_MAX = 4096,
    CNI_VERSION_MAX = 31,
    KEY_MAX = 63,
    SOCKET_PATH_MAX = sizeof((struct sockaddr_un *)0)->sun_path - 1,
    IFNAME_MAX = 15,
    SPOOL_FILES_MAX = 10000,
    STATUS_SECONDS_MAX = 10, /* A runtime asks every few seconds. */
    DEL_SECONDS_MAX = 20,    /* The spool makes up for it; a longer wait would only hold up the pod's end. */
    CALL_SECONDS_MAX = 90,   /* ADD, CHECK, GC */
    CONNECT_RETRY_MILLISECONDS = 20,
};
enum { ERROR_ENVIRONMENT = 4, ERROR_IO = 5, ERROR_UNDECODABLE = 6, ERROR_TRY_AGAIN = 11, ERROR_UNAVAILABLE = 50 };

/* The request's body stands behind a gap, into which the head goes once the body's length is known: so there is one
 * piece to send, and one to spool. Pages of these buffers that stay untouched cost nothing; one byte more than is ever
 * filled keeps them strings. */
static char request[REQUEST_HEAD_MAX + ENVIRONMENT_MAX + 1 + STDIN_MAX + 1 + 1];
static char *const body = request + REQUEST_HEAD_MAX;
static char answer[ANSWER_HEAD_MAX + ANSWER_MAX + 1];

static struct configuration {
    char cni_version[CNI_VERSION_MAX + 1]; /* Empty: absent or not usable. */
    char socket[SOCKET_PATH_MAX + 1];      /* Empty: absent. */
    bool socket_refused;
} configuration;

struct answer {
    int status;
    char *text;
    size_t length;
};

static int64_t nanoseconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* How far a read or a write got; errno tells a failed one apart. */
static size_t moved(ssize_t count) { return count > 0 ? (size_t)count : 0; }

static bool broken(ssize_t count) { return count < 0 && errno != EAGAIN && errno != EINTR; }

/* Waits until the descriptor is ready. Past the deadline it is false in any case: bytes that trickle in one by one must
 * not prolong a call. */
static bool ready(int descriptor, short events, int64_t deadline) {
    struct pollfd watched = {.fd = descriptor, .events = events};
    int64_t left;
    while ((left = deadline - nanoseconds(CLOCK_MONOTONIC)) > 0)
        if (poll(&watched, 1, (int)((left + 999999) / 1000000)) > 0)
            return true;
    return false;
}

/* What is printed. */

/* In ASCII: a path need not be UTF-8, but JSON must. Other bytes are shown as a shell shows them, \xNN. */
static void print_string(const char *text) {
    putchar('"');
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        printf(byte == '"' || byte == '\\' ? "\\%c" : byte < ' ' ? "\\u%04x" : byte < 0x7f ? "%c" : "\\\\x%02x", byte);
    }
    putchar('"');
}

static void print_version(void) {
    printf("{\"cniVersion\":");
    print_string(*configuration.cni_version ? configuration.cni_version : CNI_VERSION_NEWEST);
}

/* Prints an error, which CNI wants on stdout too; returns the exit code. */
__attribute__((format(printf, 3, 4)))
static int fail(int code, const char *details, const char *format, ...) {
    char message[MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    print_version();
    printf(",\"code\":%d,\"msg\":", code);
    print_string(message);
    printf(",\"details\":");
    print_string(details);
    puts("}");
    return EXIT_FAILURE;
}

/* The two strings of the configuration. */

static int digit(char of) {
    static const char digits[] = "0123456789abcdef";
    const char *found = of ? strchr(digits, tolower((unsigned char)of)) : NULL;
    return found ? (int)(found - digits) : -1;
}

/* Moves past the string that begins here and decodes it. False, and an empty text, when it has no end, is too long, or
 * has an escape that stands in no version and no path. */
static bool take_string(const char **at, char *into, size_t size) {
    bool usable = true;
    size_t length = 0;
    const char *next = *at + 1;
    for (; *next && *next != '"'; next++) {
        unsigned char byte = (unsigned char)*next, lead = 0;
        if (byte == '\\') {
            byte = (unsigned char)*++next;
            if (byte == 'u' && next[1] == '0' && next[2] == '0' && digit(next[3]) >= 0 && digit(next[4]) >= 0) {
                byte = (unsigned char)(digit(next[3]) << 4 | digit(next[4]));
                next += 4;
                if (byte >= 0x80) { /* It names a character, which has two bytes in UTF-8. */
                    lead = 0xc0 | byte >> 6;
                    byte = 0x80 | (byte & 0x3f);
                }
            } else if (byte != '"' && byte != '\\' && byte != '/')
                usable = false;
            if (!*next) /* The text ends within the escape. */
                break;
        }
        usable = usable && byte && length + (lead ? 2 : 1) < size;
        if (usable && lead)
            into[length++] = (char)lead;
        if (usable)
            into[length++] = (char)byte;
    }
    usable = usable && *next;
    into[usable ? length : 0] = '\0';
    *at = *next ? next + 1 : next;
    return usable;
}

/* As take_string. null is as good as absent; any other value is not usable. */
static bool take_value(const char **at, char *into, size_t size) {
    if (**at == '"')
        return take_string(at, into, size);
    into[0] = '\0';
    return strncmp(*at, "null", 4) == 0;
}

/* Finds the top level's cniVersion (prevResult has one of its own, so depth counts) and ipam's ipam_unix_socket_path.
 * It judges nothing and takes what it finds in a broken text too: an error names the request's version even then. Of
 * equal keys the last counts, as for other parsers. */
static void scan(const char *at, struct configuration *found) {
    static const char space[] = " \t\r\n";
    char key[KEY_MAX + 1];
    bool in_ipam = false;
    for (int depth = 0; *at;) {
        if (*at != '"') {
            depth += *at == '{' || *at == '[';
            if ((*at == '}' || *at == ']') && --depth <= 0)
                return;
            at++;
            continue;
        }
        take_string(&at, key, sizeof key);
        const char *colon = at + strspn(at, space);
        if (*colon != ':')
            continue;
        at = colon + 1 + strspn(colon + 1, space);
        if (depth == 1)
            in_ipam = strcmp(key, "ipam") == 0 && *at == '{';
        if (depth == 1 && strcmp(key, "cniVersion") == 0)
            take_value(&at, found->cni_version, sizeof found->cni_version);
        if (depth == 2 && in_ipam && strcmp(key, "ipam_unix_socket_path") == 0)
            found->socket_refused = !take_value(&at, found->socket, sizeof found->socket);
    }
}

/* The request. */

static bool put_variable(size_t *size, const char *name, const char *value) {
    size_t room = ENVIRONMENT_MAX - *size;
    int length = value ? snprintf(body + *size, room, "%s=%s", name, value) : -1;
    if (length >= 0 && (size_t)length < room)
        *size += (size_t)length + 1; /* with its NUL */
    return length < 0 || (size_t)length < room;
}

/* `NAME=VALUE\0` for each variable that is set, then a lone NUL; false when that is too much. */
static bool put_environment(size_t *size, int64_t started) {
    static const char *const names[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS",
                                        "CNI_IFNAME",  "CNI_ARGS",        "CNI_PATH"};
    char stamp[24];
    bool fits = true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        fits = put_variable(size, names[i], getenv(names[i])) && fits;
    snprintf(stamp, sizeof stamp, "%lld", (long long)started);
    fits = put_variable(size, "SPIDERLEDGER_START", stamp) && fits;
    body[(*size)++] = '\0';
    return fits;
}

/* Reads to the end, but at most one byte more than is allowed. Returns NULL, or why not. */
static const char *read_stdin(char *into, size_t *length, int64_t deadline) {
    ssize_t count = 1;
    while (count != 0 && *length <= STDIN_MAX) {
        if (!ready(STDIN_FILENO, POLLIN, deadline))
            return "its end did not come in time";
        count = read(STDIN_FILENO, into + *length, STDIN_MAX + 1 - *length);
        if (broken(count))
            return strerror(errno);
        *length += moved(count);
    }
    return NULL;
}

/* The agent. These return NULL, or why there is no answer. */

static const char *reach(int agent, const char *path, int64_t deadline) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) > SOCKET_PATH_MAX)
        return strerror(ENAMETOOLONG);
    strcpy(address.sun_path, path);
    while (connect(agent, (struct sockaddr *)&address, sizeof address) != 0) {
        if (errno != EAGAIN && errno != EINTR)
            return strerror(errno);
        if (nanoseconds(CLOCK_MONOTONIC) >= deadline)
            return "it accepted no connection in time";
        poll(NULL, 0, CONNECT_RETRY_MILLISECONDS); /* A full backlog says EAGAIN at once, and nothing tells its end. */
    }
    return NULL;
}

/* Reads the answer's head once it is there (text is set then); false when this cannot become an answer. Content-Length
 * is required: without it, half an answer looks like a whole one. */
static bool read_head(size_t got, struct answer *found) {
    static const char start[] = "HTTP/1.", field[] = "\r\nContent-Length:";
    if (strncmp(answer, start, got < strlen(start) ? got : strlen(start)) != 0)
        return false;
    char *end = memmem(answer, got, "\r\n\r\n", 4), *after;
    if (!end)
        return got < ANSWER_HEAD_MAX;
    *end = '\0';
    const char *status = strchr(answer, ' '), *length = strcasestr(answer, field);
    if (!status || !length)
        return false;
    length += strlen(field);
    length += strspn(length, " \t");
    found->status = atoi(status);
    found->length = strtoul(length, &after, 10);
    found->text = end + 4;
    return found->status >= 100 && isdigit((unsigned char)*length) && (*after == '\0' || *after == '\r') &&
           found->length <= ANSWER_MAX && found->text - answer <= ANSWER_HEAD_MAX;
}

/* Sends and receives at once, since an agent may refuse before it has read all. The writing side stays open: an agent
 * drops the request of a client that has hung up. */
static const char *exchange(int agent, const char *bytes, size_t size, int64_t deadline, struct answer *found) {
    for (size_t got = 0; !found->text || got - (size_t)(found->text - answer) < found->length;) {
        if (!ready(agent, size ? POLLIN | POLLOUT : POLLIN, deadline))
            return "no complete answer came in time";
        ssize_t count = size ? send(agent, bytes, size, 0) : 0;
        bytes += moved(count);
        size = broken(count) ? 0 : size - moved(count); /* Who listens no more may still have said something before. */
        count = recv(agent, answer + got, sizeof answer - 1 - got, 0);
        if (count == 0)
            return "it hung up before its answer was complete";
        if (broken(count))
            return strerror(errno);
        got += moved(count);
        if (!found->text && !read_head(got, found))
            return NOT_OURS;
    }
    /* Another server's error page would tell a runtime nothing. */
    bool understood = found->length ? *found->text == '{' : found->status == 200;
    return understood ? NULL : NOT_OURS;
}

static const char *ask(const char *path, size_t size, int64_t deadline, struct answer *found) {
    char head[REQUEST_HEAD_MAX];
    int length = snprintf(head, sizeof head, "POST /v1/cni HTTP/1.1\r\nHost: spiderledger\r\n"
                          "Content-Type: application/vnd.spiderledger.cni\r\nContent-Length: %zu\r\n"
                          "Connection: close\r\n\r\n", size);
    memcpy(body - length, head, (size_t)length);
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (agent < 0)
        return strerror(errno);
    const char *reason = reach(agent, path, deadline);
    if (!reason)
        reason = exchange(agent, body - length, (size_t)length + size, deadline, found);
    close(agent);
    return reason;
}

/* The spool. These return 0 or an errno. */

static int open_folder(const char *path, int *folder) {
    bool made = mkdir(path, 0700) == 0;
    if (!made && errno != EEXIST)
        return errno;
    *folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*folder < 0)
        return errno;
    /* A new folder outlives a power cut only if the folder above it is on the disk too. */
    int above = made ? openat(*folder, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int error = made && (above < 0 || fsync(above) != 0) ? errno : 0;
    if (above >= 0)
        close(above);
    return error;
}

/* All entries count, even temporary files that a crash left: nothing may fill the disk. */
static int find_room(const char *path) {
    DIR *folder = opendir(path);
    if (!folder)
        return errno;
    int entries = -2; /* . and .. */
    while (entries < SPOOL_FILES_MAX && readdir(folder))
        entries++;
    closedir(folder);
    return entries < SPOOL_FILES_MAX ? 0 : EDQUOT;
}

/* The name appears with its whole content or not at all. By link() and not rename(): of two equal DELs the first one
 * stays, which carries the original time. */
static int put_file(int folder, const char *name, size_t size) {
    char temporary[64];
    snprintf(temporary, sizeof temporary, ".tmp-%ld-%lld", (long)getpid(), (long long)nanoseconds(CLOCK_REALTIME));
    int descriptor = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    FILE *file = descriptor < 0 ? NULL : fdopen(descriptor, "w");
    if (!file)
        return errno;
    bool written = fwrite(body, 1, size, file) == size && fflush(file) == 0 && fsync(descriptor) == 0;
    int error = written ? 0 : errno;
    fclose(file);
    if (!error && linkat(folder, temporary, folder, name, 0) != 0 && errno != EEXIST)
        error = errno;
    unlinkat(folder, temporary, 0);
    return error;
}

static int put_into_spool(const char *path, const char *name, size_t size) {
    int folder = -1, error = open_folder(path, &folder);
    /* An equal DEL that waits already needs no room; only its fsync of the folder may still be on the way. */
    if (!error && faccessat(folder, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0) {
        error = find_room(path);
        if (!error)
            error = put_file(folder, name, size);
    }
    if (!error && fsync(folder) != 0)
        error = errno;
    if (folder >= 0)
        close(folder);
    return error;
}

/* The file name of a DEL, `container:interface`; returns NULL, or which variable makes none. */
static const char *name_del(const char *container, const char *interface, char *name) {
    if (!container || !strspn(container, ALPHANUMERIC) || container[strspn(container, ALPHANUMERIC "_.-")])
        return "CNI_CONTAINERID must be of letters, digits, '_', '.' and '-', and begin with a letter or a digit";
    if (!interface || !*interface || strlen(interface) > IFNAME_MAX || strpbrk(interface, "/: \t\n\v\f\r") ||
        strcmp(interface, ".") == 0 || strcmp(interface, "..") == 0)
        return "CNI_IFNAME must have 1 to 15 characters, not be '.' or '..', and have no '/', ':' or white space";
    if (snprintf(name, NAME_MAX + 1, "%s:%s", container, interface) > NAME_MAX)
        return "CNI_CONTAINERID and CNI_IFNAME are too long together for a file's name";
    return NULL;
}

/* A DEL without an answer succeeds once it is safely kept. */
static int keep_del(size_t size, const char *socket_path, const char *reason) {
    char name[NAME_MAX + 1];
    const char *path = getenv("SPIDERLEDGER_SPOOL");
    const char *wrong = name_del(getenv("CNI_CONTAINERID"), getenv("CNI_IFNAME"), name);
    if (wrong)
        return fail(ERROR_ENVIRONMENT, "A DEL without an answer is kept as a file of these names for the agent.",
                    "%s (and no agent answered at %s: %s)", wrong, socket_path, reason);
    path = path && *path ? path : SPOOL_DEFAULT;
    int error = put_into_spool(path, name, size);
    if (error)
        return fail(ERROR_IO, "SPIDERLEDGER_SPOOL names the folder, else it is " SPOOL_DEFAULT ".",
                    "no agent answered at %s (%s), and this DEL cannot be kept as %s/%s: %s; start the agent, or make "
                    "the folder writable with less than %d files in it",
                    socket_path, reason, path, name, strerror(error), SPOOL_FILES_MAX);
    return EXIT_SUCCESS;
}

/* The call. */

static int seconds_max(const char *command) {
    if (strcmp(command, "STATUS") == 0)
        return STATUS_SECONDS_MAX;
    return strcmp(command, "DEL") == 0 ? DEL_SECONDS_MAX : CALL_SECONDS_MAX;
}

static int call_agent(const char *command, size_t size, int64_t deadline) {
    struct answer found = {0};
    const char *reason, *path = *configuration.socket ? configuration.socket : getenv("SPIDERLEDGER_SOCKET");
    path = path && *path ? path : SOCKET_DEFAULT;
    if (configuration.socket_refused) { /* Not the default instead: another agent may listen there. */
        path = "the path in ipam.ipam_unix_socket_path";
        reason = "it must be a string of at most 107 bytes, its characters escaped up to \\u00ff only";
    } else
        reason = ask(path, size, deadline, &found);
    if (!reason) {
        fwrite(found.text, 1, found.length, stdout);
        return fflush(stdout) == 0 && found.status == 200 ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    if (strcmp(command, "DEL") == 0)
        return keep_del(size, path, reason);
    return fail(strcmp(command, "STATUS") == 0 ? ERROR_UNAVAILABLE : ERROR_TRY_AGAIN,
                "ipam.ipam_unix_socket_path names the socket, else SPIDERLEDGER_SOCKET, else it is " SOCKET_DEFAULT ".",
                "no answer from the Spiderledger agent at %s: %s (limit %d s); check that the agent runs on this node "
                "and listens there", path, reason, seconds_max(command));
}

int main(void) {
    int64_t started = nanoseconds(CLOCK_REALTIME), deadline = nanoseconds(CLOCK_MONOTONIC);
    const char *command = getenv("CNI_COMMAND") ? getenv("CNI_COMMAND") : "", *reason = NULL;
    size_t size = 0, input = 0;
    signal(SIGPIPE, SIG_IGN); /* An agent that hangs up has not answered; that must not end a DEL. */
    deadline += seconds_max(command) * INT64_C(1000000000);
    bool fits = put_environment(&size, started);
    if (*command || !isatty(STDIN_FILENO)) /* Who tries it by hand shall read the error below at once. */
        reason = read_stdin(body + size, &input, deadline);
    scan(body + size, &configuration);
    if (!*command)
        return fail(ERROR_ENVIRONMENT, "Container runtimes execute this program as the CNI specification says.",
                    "the variable CNI_COMMAND is missing: it must be ADD, DEL, CHECK, GC, STATUS or VERSION");
    if (!fits)
        return fail(ERROR_ENVIRONMENT, "", "CNI_ARGS, CNI_PATH and the other CNI_ variables are longer than %d bytes "
                    "together: shorten them", ENVIRONMENT_MAX);
    if (reason)
        return fail(ERROR_IO, "", "cannot read the network configuration from stdin: %s", reason);
    if (input > STDIN_MAX)
        return fail(ERROR_UNDECODABLE, "", "the network configuration on stdin is longer than %d bytes: shorten it",
                    STDIN_MAX);
    if (strcmp(command, "VERSION") != 0)
        return call_agent(command, size + input, deadline);
    print_version();
    puts(",\"supportedVersions\":" CNI_VERSIONS "}");
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
