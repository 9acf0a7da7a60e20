/* The CNI plugin under libFuzzer: the whole program, with a host that lies.
 *
 * An input says the command, the variables, what lies on stdin, what the agent answers and in which pieces, where a
 * buffer's limit is met, and which system call fails with what. The spool is a real folder; time is the host's to tell,
 * so that deadlines pass at once. After each call it is checked that a runtime got what CNI promises it: see `judge`.
 *
 * Input: HEAD_SIZE bytes of choices, then the sections, each ended by SEPARATOR.
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

enum { SEPARATOR = 0x1e, INPUT_MAX = 1 << 14, PADDED_MAX = 1 << 21, POLL_MILLISECONDS = 100, PADS = 5 };
enum { COMMAND, FAULT_AT, FAULT, PIECE, ENDS, PAD, PAD_SIZE, HEAD_SIZE };
enum { CONTAINER, INTERFACE, ARGUMENTS, SOCKET, INPUT, ANSWER, SECTIONS };

struct stream { /* Bytes that come in pieces, and then: the end, an error, or silence. */
    const char *bytes;
    size_t size, at, piece;
    int end;
};

#define STARTED INT64_C(1700000000000)

static const uint8_t *choices;
static char sections[SECTIONS][PADDED_MAX];
static size_t sizes[SECTIONS];
static struct stream input, reply;
static char sent[PADDED_MAX];
static size_t sent_size;
static int64_t now_milliseconds;
static unsigned calls;
static bool connected;
static char spool[64];
static FILE *out;
static const char *command;

/* The host. ----------------------------------------------------------------------------------------------------- */

static bool fails(void) {
    static const int errors[] = {EINTR, EAGAIN, EIO, ENOSPC, EACCES, EMFILE, ECONNRESET, ENOENT, EPIPE};
    if (!choices[FAULT_AT] || ++calls != choices[FAULT_AT])
        return false;
    errno = errors[choices[FAULT] % (sizeof errors / sizeof *errors)];
    return true;
}

static ssize_t take(struct stream *from, void *into, size_t size) {
    size_t left = from->size - from->at, count = left < from->piece ? left : from->piece;
    count = count < size ? count : size;
    memcpy(into, from->bytes + from->at, count);
    from->at += count;
    if (count || from->end == 0)
        return (ssize_t)count;
    errno = from->end == 1 ? ECONNRESET : EAGAIN;
    return -1;
}

static char *host_getenv(const char *name) {
    static const struct { const char *name; int section; } known[] = {
        {"CNI_CONTAINERID", CONTAINER}, {"CNI_IFNAME", INTERFACE}, {"CNI_ARGS", ARGUMENTS},
        {"SPIDERLEDGER_SOCKET", SOCKET},
    };
    if (strcmp(name, "CNI_COMMAND") == 0)
        return (char *)(uintptr_t)command;
    if (strcmp(name, "SPIDERLEDGER_SPOOL") == 0)
        return spool;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0)
            return sizes[known[i].section] ? sections[known[i].section] : NULL;
    return NULL;
}

static int host_clock_gettime(clockid_t clock, struct timespec *now) {
    (void)clock;
    *now = (struct timespec){now_milliseconds / 1000, now_milliseconds % 1000 * 1000000};
    return 0;
}

static int host_poll(struct pollfd *watched, nfds_t count, int timeout) {
    const struct stream *from = count && watched->fd == STDIN_FILENO ? &input : &reply;
    bool silent = !count || (from->at == from->size && from->end == 2 && !(watched->events & POLLOUT));
    now_milliseconds += silent ? timeout : POLL_MILLISECONDS;
    return silent || fails() ? 0 : 1;
}

static ssize_t host_read(int descriptor, void *into, size_t size) {
    (void)descriptor;
    return fails() ? -1 : take(&input, into, size);
}

static ssize_t host_recv(int descriptor, void *into, size_t size, int flags) {
    (void)descriptor, (void)flags;
    return fails() ? -1 : take(&reply, into, size);
}

static ssize_t host_send(int descriptor, const void *bytes, size_t size, int flags) {
    (void)descriptor, (void)flags;
    if (fails())
        return -1;
    size_t count = choices[ENDS] & 16 && size > 4096 ? 4096 : size;
    memcpy(sent + sent_size, bytes, count);
    sent_size += count;
    return (ssize_t)count;
}

static int host_connect(int descriptor, const struct sockaddr *address, socklen_t size) {
    (void)descriptor, (void)address, (void)size;
    if (choices[ENDS] & 32)
        return errno = ECONNREFUSED, -1;
    return fails() ? -1 : (connected = true, 0);
}

static int host_socket(int domain, int type, int protocol) {
    (void)domain, (void)type, (void)protocol;
    return fails() ? -1 : open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static int host_isatty(int descriptor) { return (void)descriptor, choices[ENDS] >> 6 & 1; }
static int host_mkdir(const char *path, mode_t mode) { return fails() ? -1 : mkdir(path, mode); }
static int host_fsync(int descriptor) { return fails() ? -1 : fsync(descriptor); }
static DIR *host_opendir(const char *path) { return fails() ? NULL : opendir(path); }
static int host_open(const char *path, int flags) { return fails() ? -1 : open(path, flags); }
static int host_openat(int folder, const char *path, int flags, ...) {
    return fails() ? -1 : openat(folder, path, flags, 0600);
}
static int host_linkat(int from, const char *path, int to, const char *name, int flags) {
    return fails() ? -1 : linkat(from, path, to, name, flags);
}

#define main plugin_main
#define getenv host_getenv
#define clock_gettime host_clock_gettime
#define poll host_poll
#define read host_read
#define recv host_recv
#define send host_send
#define connect host_connect
#define socket host_socket
#define isatty host_isatty
#define mkdir host_mkdir
#define fsync host_fsync
#define opendir host_opendir
#define open host_open
#define openat host_openat
#define linkat host_linkat
#define printf(...) fprintf(out, __VA_ARGS__)
#define putchar(letter) fputc(letter, out)
#define puts(line) fprintf(out, "%s\n", line)
#undef stdout
#define stdout out
#include "spiderpool.c"
#undef main
#undef read
#undef open
#undef opendir
#undef openat

/* What must be true. -------------------------------------------------------------------------------------------- */

#define MUST(condition) \
    do \
        if (!(condition)) { \
            fprintf(stderr, "not true: %s\ncommand %s, printed: %.400s\n", #condition, command, printed); \
            abort(); \
        } \
    while (0)

/* Past a JSON string of printable ASCII that begins here; NULL when there is none. */
static const char *after_string(const char *at) {
    if (*at++ != '"')
        return NULL;
    for (; *at != '"'; at++) {
        if (*at < ' ' || *at > '~')
            return NULL;
        if (*at != '\\')
            continue;
        at++;
        if (*at != '"' && *at != '\\' && (*at != 'u' || strspn(at + 1, "0123456789abcdef") < 4))
            return NULL;
    }
    return at + 1;
}

/* Whether this is one CNI error in one line, as the plugin makes it; its code. */
static int own_error(const char *at) {
    static const char *const keys[] = {"{\"cniVersion\":", ",\"code\":", ",\"msg\":", ",\"details\":", "}\n"};
    long code = -1;
    for (int key = 0; key < 5; key++) {
        size_t length = strlen(keys[key]);
        if (strncmp(at, keys[key], length) != 0)
            return -1;
        at += length;
        char *end = NULL;
        if (key == 1)
            code = strtol(at, &end, 10);
        at = key == 1 ? end : key == 4 ? at : after_string(at);
        if (!at)
            return -1;
    }
    return *at ? -1 : (int)code;
}

/* What lies in the spool, which is emptied: half written files, requests, and whether those are the one that was made. */
struct spooled { int torn, whole; bool right; };

static struct spooled empty_spool(size_t body_size) {
    struct spooled found = {0, 0, true};
    DIR *folder = opendir(spool);
    for (struct dirent *each; folder && (each = readdir(folder));) {
        const char *name = each->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (*name == '.')
            found.torn++;
        else {
            int file = openat(dirfd(folder), name, O_RDONLY);
            char *kept = malloc(body_size + 1);
            found.right = (size_t)read(file, kept, body_size + 1) == body_size && memcmp(kept, body, body_size) == 0;
            found.whole++;
            free(kept);
            close(file);
        }
        unlinkat(dirfd(folder), name, 0);
    }
    if (folder)
        closedir(folder);
    rmdir(spool);
    return found;
}

/* The request's body as the plugin laid it down: the variables, an empty one, and all of stdin. */
static size_t body_size(void) {
    const char *at = body;
    while (*at)
        at += strlen(at) + 1;
    return (size_t)(at - body) + 1 + input.at;
}

static void judge(int status, const char *printed, size_t printed_size, int64_t took) {
    bool is_del = command && strcmp(command, "DEL") == 0, is_version = command && strcmp(command, "VERSION") == 0;
    size_t size = body_size();
    struct spooled kept = empty_spool(size);
    int code = printed_size ? own_error(printed) : -1;
    MUST(status == EXIT_SUCCESS || status == EXIT_FAILURE);
    MUST(took <= seconds_max(command ? command : "") * INT64_C(1000) + POLL_MILLISECONDS);
    MUST(kept.torn == 0);
    MUST(kept.whole == 0 || (is_del && kept.right));
    if (code >= 0)
        MUST(status == EXIT_FAILURE && (code == 4 || code == 5 || code == 6 || code == 11 || code == 50));
    else if (is_version)
        MUST(status == EXIT_SUCCESS && strncmp(printed, "{\"cniVersion\":\"", 15) == 0);
    else if (printed_size) /* The agent's words, and nothing but those. */
        MUST(connected && *printed == '{' && memmem(reply.bytes, reply.at, printed, printed_size));
    else /* A failure says why; a silent success was kept, or is the agent's. */
        MUST(status == EXIT_SUCCESS && ((is_del && kept.whole == 1) || (connected && reply.at >= strlen("HTTP/1.0 200"))));
    const char *sent_body = memmem(sent, sent_size, "\r\n\r\n", 4);
    size_t sent_of_body = sent_body ? (size_t)(sent + sent_size - sent_body) - 4 : 0;
    MUST(sent_of_body <= size && (!sent_body || memcmp(sent_body + 4, body, sent_of_body) == 0));
}

/* One input. ---------------------------------------------------------------------------------------------------- */

static void pad(int section, size_t to) {
    if (sizes[section] < to && to < PADDED_MAX) {
        memset(sections[section] + sizes[section], section == ARGUMENTS ? 'x' : ' ', to - sizes[section]);
        sizes[section] = to;
    }
}

/* One in sixteen of those that ask for it: megabytes take time, and their offspring would ask for it too. */
static bool is_padded(const uint8_t *data, size_t size) {
    unsigned sum = 0;
    for (size_t i = 0; i < size; i++)
        sum += data[i];
    return data[PAD] && data[PAD] <= PADS && sum % 16 == 0;
}

static void cut(const uint8_t *data, size_t size, bool padded) {
    const uint8_t *end = data + size;
    for (int section = 0; section < SECTIONS; section++) {
        const uint8_t *stop = data < end ? memchr(data, SEPARATOR, (size_t)(end - data)) : NULL;
        stop = stop ? stop : end;
        sizes[section] = (size_t)(stop - data);
        memcpy(sections[section], data, sizes[section]);
        data = stop < end ? stop + 1 : end;
    }
    size_t more = choices[PAD_SIZE] % 64; /* Around the limit, which lies in the middle of these. */
    switch (padded ? choices[PAD] : 0) {
        case 1: pad(INPUT, STDIN_MAX - 32 + more); break;
        case 2: pad(ARGUMENTS, ENVIRONMENT_MAX - 96 + more); break;
        case 3: pad(ANSWER, ANSWER_MAX + sizes[ANSWER] - 32 + more); break;
        case 4: pad(ANSWER, ANSWER_HEAD_MAX - 32 + more); break;
        case 5: pad(ANSWER, ANSWER_HEAD_MAX + ANSWER_MAX - 32 + more); break;
        default: break;
    }
    for (int section = 0; section < SECTIONS; section++)
        sections[section][sizes[section]] = '\0';
}

/* A block of exactly its size, so that the sanitizer sees a read past its end. */
static void scan_exactly(void) {
    struct configuration found = {0};
    char *copy = malloc(sizes[INPUT] + 1);
    memcpy(copy, sections[INPUT], sizes[INPUT] + 1);
    scan(copy, &found);
    free(copy);
}

/* The memory of a program that has just started. Wiping megabytes takes longer than the rest. */
static void begin_anew(bool padded) {
    static bool padded_before = true;
    bool all = padded || padded_before;
    memset(request, 0, all ? sizeof request : 2 * INPUT_MAX);
    memset(answer, 0, all ? sizeof answer : 2 * INPUT_MAX);
    configuration = (struct configuration){0};
    calls = 0, sent_size = 0, connected = false, now_milliseconds = STARTED;
    padded_before = padded;
}

int LLVMFuzzerInitialize(int *count, char ***arguments) {
    (void)count, (void)arguments;
    snprintf(spool, sizeof spool, "spool-%ld", (long)getpid());
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const commands[] = {"ADD", "DEL", "DEL", "CHECK", "GC", "STATUS", "VERSION", "ODD", "", NULL};
    if (size < HEAD_SIZE || size > INPUT_MAX)
        return -1;
    choices = data;
    command = commands[data[COMMAND] % (sizeof commands / sizeof *commands)];
    bool padded = is_padded(data, size);
    cut(data + HEAD_SIZE, size - HEAD_SIZE, padded);
    size_t piece = data[PIECE] < 200 ? data[PIECE] + 1u : PADDED_MAX;
    piece = padded ? PADDED_MAX : piece; /* A megabyte in single bytes would take all day. */
    input = (struct stream){sections[INPUT], sizes[INPUT], 0, piece, data[ENDS] & 3 ? (data[ENDS] & 3) % 3 : 0};
    reply = (struct stream){sections[ANSWER], sizes[ANSWER], 0, piece, (data[ENDS] >> 2 & 3) % 3};
    begin_anew(padded);
    if (!padded)
        scan_exactly();
    char *printed = NULL;
    size_t printed_size = 0;
    out = open_memstream(&printed, &printed_size);
    int status = plugin_main();
    fclose(out);
    judge(status, printed, printed_size, now_milliseconds - STARTED);
    free(printed);
    return 0;
}
