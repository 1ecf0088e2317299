/* What the parts of the fake libcuda share. It stands in for NVIDIA's driver where there is none: the real Python
 * packages load it and call it. It keeps everything in host memory and is strict where the driver is lenient.
 *
 * Set from the environment of the process:
 *   FAKE_CUDA_DEVICES   how many devices there are; 2 unless set
 *   FAKE_CUDA_CAPABILITY  compute capabilities of the devices in order, such as 8.9,9.0, the last for all after it; 8.9
 *   FAKE_CUDA_MEMORY    bytes of memory of each device; 256 MiB unless set
 *   FAKE_CUDA_FAIL      CALL:N:CODE, the N-th call of CALL and all after it fail with CODE
 *   FAKE_CUDA_WAIT_MS   how long the calls that wait take
 *   FAKE_CUDA_REPORT    a file that tells, when the process ends, what was not freed
 */
#ifndef FAKE_H
#define FAKE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Codes, kinds and the layout of rectangles as cuda.h has them. */
enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_PTX = 218, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
    CONTEXT_IS_DESTROYED = 709, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_ISOLATION = 905
};

typedef struct {
    size_t src_x, src_y;
    int src_type;
    const void *src_host;
    uintptr_t src_device;
    void *src_array;
    size_t src_pitch, dst_x, dst_y;
    int dst_type;
    void *dst_host;
    uintptr_t dst_device;
    void *dst_array;
    size_t dst_pitch, width, height;
} Rectangle;

enum { DEVICE_MEMORY = 2 };

typedef struct {
    int device, primary, live;
    size_t used;
} Context;

typedef enum { STREAM, EVENT, MEMORY, PINNED, MODULE, FUNCTION, GRAPH, EXECUTABLE, KINDS } Kind;

typedef struct Stream Stream;
typedef struct Op Op;
typedef struct Object Object;

/* One thing that a handle names. Handles are never used again, so that a stale one is always recognised. */
struct Object {
    Kind kind;
    int live;
    Context *context;
    uintptr_t handle; /* the address that was given out, for memory */
    unsigned char *bytes;
    size_t size;
    Stream *stream; /* of a stream */
    Op *record;     /* of an event: its last record */
    Op *first;      /* of a graph: what it does */
    Object *module; /* of a function */
    char *text;     /* of a module or function */
    Object *next;
};

typedef enum { COPY, RECORD, WAIT, FILL, KERNEL } Action;

struct Op {
    Action action;
    Stream *stream; /* where a record was made */
    Op *awaited;
    int done;
    double seconds; /* when a record was done, on the device's clock */
    Rectangle rows;
    uintptr_t address;
    int byte;
    size_t size;
    unsigned launch[6];
    unsigned char argument[256];
    Op *next;
};

struct Stream {
    Op *first, *last;
    int capturing;
    Op *captured, *captured_last;
};

extern pthread_mutex_t lock;
extern int retained[8], retained_ever;
int enter(const char *name, int needs_context);
long number(const char *variable, long otherwise);

/* Start and end of every call: counted, made to fail if asked to, refused without a context. */
#define BEGIN(name, needs_context)                  \
    pthread_mutex_lock(&lock);                      \
    int status = enter(name, needs_context);        \
    if (status != SUCCESS) goto end
#define REQUIRE(condition, code)                    \
    do {                                            \
        if (!(condition)) {                         \
            status = code;                          \
            goto end;                               \
        }                                           \
    } while (0)
#define END                                         \
    end:                                            \
    pthread_mutex_unlock(&lock);                    \
    return status

Context *current(void);
Object *create(Kind kind);
Object *find(Kind kind, uintptr_t handle);
Object *containing(Kind kind, uintptr_t address, size_t size);
void dispose(Object *object);
int enqueue(Stream *stream, const Op *op);
void finish(Stream *stream);
void run_until(Stream *stream, const Op *last);
int capturing_forbids(void);
void pause_as_asked(void);

#endif
