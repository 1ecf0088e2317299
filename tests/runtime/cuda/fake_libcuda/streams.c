/* Streams and events. Nothing is done until something waits for it: who reads a result early reads old bytes. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static double device_clock; /* every operation takes 1 ms of it */

static unsigned char *on_device(uintptr_t address) {
    Object *memory = containing(MEMORY, address, 1);
    if (!memory) abort(); /* freed while a stream still needs it: the driver would crash or corrupt */
    return memory->bytes + (address - memory->handle);
}

static void copy_rows(const Rectangle *r) {
    const unsigned char *source = r->src_type == DEVICE_MEMORY ? on_device(r->src_device) : r->src_host;
    unsigned char *target = r->dst_type == DEVICE_MEMORY ? on_device(r->dst_device) : r->dst_host;
    for (size_t row = 0; row < r->height; row++)
        memcpy(target + row * r->dst_pitch, source + row * r->src_pitch, r->width);
}

/* A kernel writes its grid and block as six uint32, then its argument, to the address that its argument begins with. */
static void run_kernel(const Op *op) {
    uintptr_t address;
    memcpy(&address, op->argument, sizeof address);
    unsigned char *target = on_device(address);
    memcpy(target, op->launch, sizeof op->launch);
    memcpy(target + sizeof op->launch, op->argument, op->size);
}

static void run(Op *op) {
    if (op->action == WAIT && op->awaited && !op->awaited->done) run_until(op->awaited->stream, op->awaited);
    if (op->action == COPY) copy_rows(&op->rows);
    if (op->action == FILL) memset(on_device(op->address), op->byte, op->size);
    if (op->action == KERNEL) run_kernel(op);
    if (op->action != RECORD && op->action != WAIT) device_clock += 1e-3;
    op->seconds = device_clock;
    op->done = 1;
}

void run_until(Stream *stream, const Op *last) {
    while (stream->first && !(last && last->done)) {
        Op *op = stream->first;
        stream->first = op->next;
        if (!stream->first) stream->last = NULL;
        run(op);
    }
}

void finish(Stream *stream) { run_until(stream, NULL); }

static Op *append(Op **first, Op **last, const Op *op) {
    Op *copied = malloc(sizeof *copied);
    *copied = *op;
    copied->next = NULL;
    if (*last) (*last)->next = copied;
    else *first = copied;
    return *last = copied;
}

int enqueue(Stream *stream, const Op *op) {
    if (!stream->capturing) append(&stream->first, &stream->last, op);
    else if (op->action == WAIT) return CAPTURE_ISOLATION;
    else append(&stream->captured, &stream->captured_last, op);
    return SUCCESS;
}

void pause_as_asked(void) {
    long milliseconds = number("FAKE_CUDA_WAIT_MS", 0);
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000}, NULL);
}

EXPORT int cuStreamCreate(uintptr_t *stream, unsigned flags) {
    BEGIN("cuStreamCreate", 1);
    REQUIRE(flags == 1, INVALID_VALUE); /* CU_STREAM_NON_BLOCKING */
    Object *object = create(STREAM);
    object->stream = calloc(1, sizeof(Stream));
    *stream = object->handle;
    END;
}

EXPORT int cuStreamDestroy_v2(uintptr_t stream) {
    BEGIN("cuStreamDestroy", 1);
    Object *object = find(STREAM, stream);
    REQUIRE(object, INVALID_HANDLE);
    finish(object->stream);
    dispose(object);
    END;
}

EXPORT int cuStreamSynchronize(uintptr_t stream) {
    pause_as_asked();
    BEGIN("cuStreamSynchronize", 1);
    Object *object = find(STREAM, stream);
    REQUIRE(object, INVALID_HANDLE);
    REQUIRE(!object->stream->capturing, CAPTURE_UNSUPPORTED);
    finish(object->stream);
    END;
}

EXPORT int cuStreamWaitEvent(uintptr_t stream, uintptr_t event, unsigned flags) {
    BEGIN("cuStreamWaitEvent", 1);
    Object *object = find(STREAM, stream), *awaited = find(EVENT, event);
    REQUIRE(object && awaited && !flags, INVALID_HANDLE);
    status = enqueue(object->stream, &(Op){.action = WAIT, .awaited = awaited->record});
    END;
}

EXPORT int cuEventCreate(uintptr_t *event, unsigned flags) {
    BEGIN("cuEventCreate", 1);
    REQUIRE(flags == 1, INVALID_VALUE); /* CU_EVENT_BLOCKING_SYNC, with times */
    *event = create(EVENT)->handle;
    END;
}

EXPORT int cuEventDestroy_v2(uintptr_t event) {
    BEGIN("cuEventDestroy", 1);
    Object *object = find(EVENT, event);
    REQUIRE(object, INVALID_HANDLE);
    dispose(object);
    END;
}

EXPORT int cuEventRecord(uintptr_t event, uintptr_t stream) {
    BEGIN("cuEventRecord", 1);
    Object *recorded = find(EVENT, event), *object = find(STREAM, stream);
    REQUIRE(recorded && (object || stream <= 1), INVALID_HANDLE);
    recorded->record = NULL; /* so it stays on the legacy default stream, 0 or 1, which has nothing to do here */
    if (object) {
        Stream *s = object->stream;
        status = enqueue(s, &(Op){.action = RECORD, .stream = s});
        if (!s->capturing) recorded->record = s->last; /* what was captured cannot be waited for or timed */
    }
    END;
}

EXPORT int cuEventSynchronize(uintptr_t event) {
    pause_as_asked();
    BEGIN("cuEventSynchronize", 1);
    Object *object = find(EVENT, event);
    REQUIRE(object, INVALID_HANDLE);
    if (object->record) run_until(object->record->stream, object->record);
    END;
}

EXPORT int cuEventElapsedTime(float *milliseconds, uintptr_t begin, uintptr_t end_) {
    BEGIN("cuEventElapsedTime", 1);
    Object *from = find(EVENT, begin), *to = find(EVENT, end_);
    REQUIRE(from && to && from->record && to->record, INVALID_HANDLE);
    REQUIRE(from->record->done && to->record->done, NOT_READY);
    *milliseconds = (float)((to->record->seconds - from->record->seconds) * 1e3);
    END;
}

EXPORT int cuEventElapsedTime_v2(float *milliseconds, uintptr_t begin, uintptr_t end) {
    return cuEventElapsedTime(milliseconds, begin, end);
}
