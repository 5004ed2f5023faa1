/* A stand-in for VMware's libvixDiskLib: the functions that nbdkit's vddk plugin calls, over the simulator's files.
 *
 * nbdkit's real plugin loads it. The declarations say in our words what that plugin passes (nbdkit, plugins/vddk,
 * BSD licence). Beside the library lies the file `standin`, one setting a line:
 *   datastore NAME FOLDER    where "[NAME] vm/vm.vmdk" is
 *   user NAME, password TEXT, thumbprint TEXT    what a login must say
 * and the folder `faults`, of which each file is one fault:
 *   locked N      the next N openings find the disk locked           refused   logins are refused
 *   fails N       the N-th read or write from now on fails           timeout N the same, as a host that went silent
 *   slow N        each read and write takes N microseconds           hang      reads and writes wait until it is gone
 *   unreachable   openings fail, as when a host's port is closed to the worker
 * `log` in that folder gets a line for each connection, opening and closing, which says how many requests were under
 * way at once at most.
 *
 * As VMware's library it lets one writer open a disk, and none while somebody reads it; and the first write after an
 * opening gives the disk a new content id. As on a vVol or on vSAN nobody may open a disk to write it on which a snapshot
 * stands (VDDK guide, "Restoring a Virtual Machine and Disk", "SAN Transport").
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
enum { SECTOR = 512, PATHS = 4096, OPEN_READ_ONLY = 4 };
enum { OK = 0, FAIL = 1, INVALID = 3, NOT_FOUND = 4, UNSUPPORTED = 6, READ_ONLY = 11, LOCKED = 16392, NO_LOGIN = 3014,
       CONNECTION_LOST = 18002, ASYNC = 25000 };
typedef uint64_t Err;
typedef void Say(const char *, va_list);
typedef void Done(void *, Err);
typedef struct {
  char *vm, *server, *thumbprint;
  long reserved1;
  int credentials;
  union { struct { char *user, *password; } by_password; struct { char *cookie, *user, *key; } by_session; } is;
  uint32_t port, nfc_port;
  char *reserved2, reserved3[8];
  void *reserved4, *spec[3];
  int spec_type;
} Params;
typedef struct {
  uint32_t bios[3], physical[3];
  uint64_t capacity;
  int adapter, links;
  char *parent, *uuid;
  uint32_t logical_sector, physical_sector;
} Info;
typedef struct { uint64_t offset, length; } Block;
typedef struct { uint32_t count; Block blocks[1]; } Blocks;
typedef struct { int read_only; } Login;
typedef struct { int fd, read_only, written, under_way, most; char descriptor[PATHS]; } Disk;

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;

static const char *beside(const char *name) { /* a file beside this library; each thread has its own answer */
  static __thread char path[PATHS];
  Dl_info about;
  if (!dladdr((void *)beside, &about)) return "";
  char *copy = strdup(about.dli_fname);
  snprintf(path, sizeof path, "%s/%s", dirname(copy), name);
  free(copy);
  return path;
}

static int setting(const char *key, const char *name, char *out, size_t size) { /* "key value" or "key name value" */
  char line[PATHS], k[32], a[256], b[PATHS];
  int found = 0;
  FILE *file = fopen(beside("standin"), "r");
  while (file && !found && fgets(line, sizeof line, file)) {
    int n = sscanf(line, "%31s %255s %4095[^\n]", k, a, b);
    if (n < 2 || strcmp(k, key) || (name && (n < 3 || strcmp(a, name)))) continue;
    found = snprintf(out, size, "%s", name ? b : a) >= 0;
  }
  if (file) fclose(file);
  return found;
}

static int differs(const char *key, const char *got) {
  char want[PATHS];
  return setting(key, NULL, want, sizeof want) && (!got || strcasecmp(want, got));
}

static long fault(const char *name) { /* -1: there is none */
  char path[64];
  long value = 0;
  snprintf(path, sizeof path, "faults/%s", name);
  FILE *file = fopen(beside(path), "r");
  if (!file) return -1;
  if (fscanf(file, "%ld", &value) != 1) value = 0;
  fclose(file);
  return value;
}

static int counted(const char *name) { /* takes one off the fault's number; was it above zero? and is it zero now? */
  char path[64], where[PATHS], text[32];
  snprintf(path, sizeof path, "faults/%s", name);
  snprintf(where, sizeof where, "%s", beside(path));
  int fd = open(where, O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  flock(fd, LOCK_EX);
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  text[n > 0 ? n : 0] = 0;
  long left = atol(text);
  if (left > 0) {
    n = snprintf(text, sizeof text, "%ld\n", left - 1);
    if (ftruncate(fd, 0) || pwrite(fd, text, n, 0) != n) left = 0;
  }
  close(fd);
  return left <= 0 ? -1 : left == 1;
}

static void note(const char *format, ...) {
  va_list rest;
  FILE *file = fopen(beside("faults/log"), "a");
  if (!file) return;
  va_start(rest, format);
  vfprintf(file, format, rest);
  va_end(rest);
  fputc('\n', file);
  fclose(file);
}

API Err VixDiskLib_InitEx(uint32_t a, uint32_t b, Say *c, Say *d, Say *e, const char *lib, const char *config) {
  note("init config=%s", config ? config : "-");
  return OK;
}
API void VixDiskLib_Exit(void) {}
API const char *VixDiskLib_ListTransportModes(void) { return "file:san:hotadd:nbdssl:nbd"; }
API char *VixDiskLib_GetErrorText(Err err, const char *locale) {
  switch (err) {
    case NOT_FOUND: return strdup("A file was not found");
    case LOCKED: return strdup("Failed to lock the file");
    case NO_LOGIN: return strdup("Cannot complete login due to an incorrect user name or password");
    case CONNECTION_LOST: return strdup("NBD_ERR_NETWORK_TIMEOUT: the connection to the host was lost");
    case READ_ONLY: return strdup("The file is read-only");
    default: return strdup("Unknown error");
  }
}
API void VixDiskLib_FreeErrorText(char *text) { free(text); }
API Params *VixDiskLib_AllocateConnectParams(void) { return calloc(1, sizeof(Params)); }
API void VixDiskLib_FreeConnectParams(Params *params) { free(params); }

API Err VixDiskLib_ConnectEx(const Params *p, char read_only, const char *snapshot, const char *modes, void **out) {
  note("connect vm=%s snapshot=%s modes=%s read_only=%d port=%u", p->vm ? p->vm : "-", snapshot ? snapshot : "-",
       modes ? modes : "-", read_only, p->port);
  if (fault("refused") >= 0 || differs("thumbprint", p->thumbprint)) return NO_LOGIN;
  if (p->credentials == 1 && (differs("user", p->is.by_password.user) || differs("password", p->is.by_password.password)))
    return NO_LOGIN;
  Login *login = calloc(1, sizeof *login);
  login->read_only = read_only;
  *out = login;
  return OK;
}
API Err VixDiskLib_Disconnect(void *login) { free(login); return OK; }

static int descriptor_of(const char *name, char *out, size_t size) { /* "[ds] vm/x.vmdk" -> folder/vm/x.vmdk */
  char datastore[256], rest[1024], folder[PATHS];
  if (sscanf(name, "[%255[^]]] %1023[^\n]", datastore, rest) != 2) return -1;
  if (!setting("datastore", datastore, folder, sizeof folder)) return -1;
  return snprintf(out, size, "%s/%s", folder, rest) < (int)size ? 0 : -1;
}

static int locked(int fd, int read_only) { /* of the open file, against other processes and the file carrier alike */
  struct flock whole = {.l_type = read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
  return fcntl(fd, F_OFD_SETLK, &whole) != 0;
}

static int stood_upon(const char *descriptor) { /* does another descriptor of its folder name it as its parent? */
  char folder[PATHS], other[2 * PATHS], mark[PATHS], text[PATHS];
  int found = 0;
  snprintf(folder, sizeof folder, "%s", descriptor);
  char *name = strrchr(folder, '/');
  if (!name) return 0;
  *name++ = 0;
  snprintf(mark, sizeof mark, "parentFileNameHint=\"%s\"", name);
  DIR *listed = opendir(folder);
  for (struct dirent *e; listed && !found && (e = readdir(listed));) {
    if (!strstr(e->d_name, ".vmdk") || strstr(e->d_name, "-flat.vmdk")) continue;
    snprintf(other, sizeof other, "%s/%s", folder, e->d_name);
    FILE *file = fopen(other, "r");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[n] = 0;
    if (file) fclose(file);
    found = strstr(text, mark) != NULL;
  }
  if (listed) closedir(listed);
  return found;
}

API Err VixDiskLib_Open(void *login, const char *name, uint32_t flags, void **out) {
  if (fault("unreachable") >= 0) return CONNECTION_LOST;
  Disk *d = calloc(1, sizeof *d);
  char flat[PATHS];
  Err err = OK;
  d->read_only = ((Login *)login)->read_only || flags & OPEN_READ_ONLY;
  note("open %s read_only=%d", name, d->read_only);
  if (counted("locked") >= 0) err = LOCKED;
  else if (descriptor_of(name, d->descriptor, sizeof d->descriptor) || access(d->descriptor, R_OK)) err = NOT_FOUND;
  else if (!d->read_only && stood_upon(d->descriptor)) err = READ_ONLY;
  else {
    size_t stem = strlen(d->descriptor) - strlen(".vmdk");
    if (snprintf(flat, sizeof flat, "%.*s-flat.vmdk", (int)stem, d->descriptor) >= (int)sizeof flat) err = NOT_FOUND;
    else if ((d->fd = open(flat, (d->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC)) < 0) err = NOT_FOUND;
    else if (locked(d->fd, d->read_only)) close(d->fd), err = LOCKED;
  }
  if (err) free(d);
  else *out = d;
  return err;
}
API const char *VixDiskLib_GetTransportMode(void *disk) { return "nbdssl"; }
API Err VixDiskLib_GetInfo(void *disk, Info **out) {
  struct stat about;
  if (fstat(((Disk *)disk)->fd, &about)) return FAIL;
  Info *info = calloc(1, sizeof *info);
  info->capacity = about.st_size / SECTOR;
  info->links = 1;
  info->adapter = 3;
  info->logical_sector = info->physical_sector = SECTOR;
  *out = info;
  return OK;
}
API void VixDiskLib_FreeInfo(Info *info) { free(info); }

static void renew_content_id(Disk *d) { /* in place, as the file system's other users expect it */
  char text[PATHS], fresh[9];
  uint32_t id = 0;
  pthread_mutex_lock(&one);
  int fd = d->written ? -1 : open(d->descriptor, O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    char *line = strstr(text, "\nCID=");
    if (getrandom(&id, sizeof id, 0) == sizeof id && line) {
      snprintf(fresh, sizeof fresh, "%08x", id & 0x7fffffff);
      if (pwrite(fd, fresh, 8, line + strlen("\nCID=") - text) == 8) d->written = 1;
    }
    close(fd);
  }
  pthread_mutex_unlock(&one);
}

static Err move(Disk *d, uint64_t sector, uint64_t count, unsigned char *bytes, int writing) {
  size_t length = count * SECTOR, done = 0;
  long slow = fault("slow");
  if (slow > 0) usleep(slow);
  while (fault("hang") >= 0) usleep(20000);
  if (counted("timeout") == 1) return CONNECTION_LOST;
  if (counted("fails") == 1) return FAIL;
  if (writing && d->read_only) return READ_ONLY;
  if (writing) renew_content_id(d);
  while (done < length) {
    off_t at = sector * SECTOR + done;
    ssize_t n = writing ? pwrite(d->fd, bytes + done, length - done, at) : pread(d->fd, bytes + done, length - done, at);
    if (n <= 0) return FAIL;
    done += n;
  }
  return OK;
}
API Err VixDiskLib_Read(void *d, uint64_t s, uint64_t n, unsigned char *b) { return move(d, s, n, b, 0); }
API Err VixDiskLib_Write(void *d, uint64_t s, uint64_t n, const unsigned char *b) { return move(d, s, n, (void *)b, 1); }
typedef struct { Disk *disk; uint64_t sector, count; unsigned char *bytes; int writing; Done *done; void *data; } Job;

static void *work(void *of) { /* told from a thread of its own, as VMware's library does it */
  Job *job = of;
  job->done(job->data, move(job->disk, job->sector, job->count, job->bytes, job->writing));
  pthread_mutex_lock(&one);
  job->disk->under_way--;
  pthread_cond_broadcast(&ended);
  pthread_mutex_unlock(&one);
  free(job);
  return NULL;
}

static Err begin(Disk *d, uint64_t sector, uint64_t count, unsigned char *bytes, int writing, Done *done, void *data) {
  Job *job = malloc(sizeof *job);
  pthread_t thread;
  *job = (Job){d, sector, count, bytes, writing, done, data};
  pthread_mutex_lock(&one);
  if (++d->under_way > d->most) d->most = d->under_way;
  pthread_mutex_unlock(&one);
  if (pthread_create(&thread, NULL, work, job)) abort();
  pthread_detach(thread);
  return ASYNC;
}
API Err VixDiskLib_ReadAsync(void *d, uint64_t s, uint64_t n, unsigned char *b, Done *done, void *data) {
  return begin(d, s, n, b, 0, done, data);
}
API Err VixDiskLib_WriteAsync(void *d, uint64_t s, uint64_t n, const unsigned char *b, Done *done, void *data) {
  return begin(d, s, n, (void *)b, 1, done, data);
}
API Err VixDiskLib_Wait(void *disk) {
  pthread_mutex_lock(&one);
  while (((Disk *)disk)->under_way) pthread_cond_wait(&ended, &one);
  pthread_mutex_unlock(&one);
  return OK;
}
API Err VixDiskLib_Close(void *disk) {
  VixDiskLib_Wait(disk);
  note("close most=%d", ((Disk *)disk)->most);
  close(((Disk *)disk)->fd);
  free(disk);
  return OK;
}
API Err VixDiskLib_Flush(void *disk) { return fdatasync(((Disk *)disk)->fd) ? FAIL : OK; }
API Err VixDiskLib_Create(void *login, const char *name, const void *how, void *progress, void *data) {
  return UNSUPPORTED;
}

API Err VixDiskLib_QueryAllocatedBlocks(void *disk, uint64_t sector, uint64_t count, uint64_t chunk, Blocks **out) {
  int fd = ((Disk *)disk)->fd;
  uint64_t end = sector + count, at = sector, room = 0;
  Blocks *found = calloc(1, sizeof *found);
  while (at < end) {
    off_t data = lseek(fd, at * SECTOR, SEEK_DATA), hole;
    if (data < 0) break;
    hole = lseek(fd, data, SEEK_HOLE);
    uint64_t from = data / SECTOR / chunk * chunk, to = ((uint64_t)hole / SECTOR + chunk - 1) / chunk * chunk;
    if (from < at) from = at;
    if (to > end) to = end;
    if (from >= end) break;
    Block *last = found->count ? &found->blocks[found->count - 1] : NULL;
    if (last && last->offset + last->length >= from) last->length = to - last->offset;
    else {
      if (found->count >= room) found = realloc(found, sizeof *found + (room = room * 2 + 64) * sizeof(Block));
      found->blocks[found->count++] = (Block){from, to - from};
    }
    at = to;
  }
  *out = found;
  return OK;
}
API Err VixDiskLib_FreeBlockList(Blocks *list) { free(list); return OK; }
