/* Graphs, which repeat what was captured, and kernels, which need a PTX text with an entry of their name. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GLOBAL = 0, THREAD_LOCAL = 1 }; /* CUstreamCaptureMode */
enum { ARGUMENT_END = 0, ARGUMENT_BUFFER = 1, ARGUMENT_SIZE = 2 }; /* CU_LAUNCH_PARAM_* */
enum { INFO_SIZE = 4, ERROR_SIZE = 6 }; /* CUjit_option */

static int captures_of_all;
static __thread int captures_here;

int capturing_forbids(void) { return captures_of_all || captures_here; }

EXPORT int cuStreamBeginCapture_v2(uintptr_t stream, int mode) {
    BEGIN("cuStreamBeginCapture", 1);
    Object *object = find(STREAM, stream);
    REQUIRE(object && !object->stream->capturing, INVALID_HANDLE);
    object->stream->capturing = 1;
    if (mode == GLOBAL) captures_of_all++;
    if (mode == THREAD_LOCAL) captures_here++;
    END;
}

EXPORT int cuStreamEndCapture(uintptr_t stream, uintptr_t *graph) {
    BEGIN("cuStreamEndCapture", 1);
    Object *object = find(STREAM, stream);
    REQUIRE(object && object->stream->capturing, INVALID_HANDLE);
    Stream *s = object->stream;
    if (captures_here) captures_here--;
    else captures_of_all--;
    Object *made = create(GRAPH);
    made->first = s->captured;
    s->captured = s->captured_last = NULL;
    s->capturing = 0;
    *graph = made->handle;
    END;
}

EXPORT int cuGraphInstantiate(uintptr_t *executable, uintptr_t graph, uint64_t flags) {
    BEGIN("cuGraphInstantiate", 1);
    Object *object = find(GRAPH, graph);
    REQUIRE(object && !flags, INVALID_HANDLE);
    Object *made = create(EXECUTABLE);
    made->first = object->first;
    *executable = made->handle;
    END;
}

EXPORT int cuGraphInstantiateWithFlags(uintptr_t *executable, uintptr_t graph, uint64_t flags) {
    return cuGraphInstantiate(executable, graph, flags);
}

static int drop(const char *name, Kind kind, uintptr_t handle) {
    BEGIN(name, 1);
    Object *object = find(kind, handle);
    REQUIRE(object, INVALID_HANDLE);
    dispose(object);
    END;
}

EXPORT int cuGraphDestroy(uintptr_t graph) { return drop("cuGraphDestroy", GRAPH, graph); }
EXPORT int cuGraphExecDestroy(uintptr_t graph) { return drop("cuGraphExecDestroy", EXECUTABLE, graph); }

EXPORT int cuGraphLaunch(uintptr_t graph, uintptr_t stream) {
    BEGIN("cuGraphLaunch", 1);
    Object *executable = find(EXECUTABLE, graph), *object = find(STREAM, stream);
    REQUIRE(executable && object, INVALID_HANDLE);
    for (const Op *op = executable->first; op; op = op->next) enqueue(object->stream, op);
    END;
}

static int load(const char *name, uintptr_t *module, const char *image) {
    BEGIN(name, 1);
    REQUIRE(!strncmp(image, ".version", 8), INVALID_PTX);
    Object *object = create(MODULE);
    object->text = strdup(image);
    *module = object->handle;
    END;
}

EXPORT int cuModuleLoadData(uintptr_t *module, const char *image) { return load("cuModuleLoadData", module, image); }

EXPORT int cuModuleLoadDataEx(uintptr_t *module, const char *image, unsigned count, const int *options, void **values) {
    for (unsigned i = 0; i < count; i++)
        if (options[i] == INFO_SIZE || options[i] == ERROR_SIZE) values[i] = NULL; /* no log was written */
    return load("cuModuleLoadData", module, image);
}

EXPORT int cuModuleUnload(uintptr_t module) {
    BEGIN("cuModuleUnload", 1);
    Object *object = find(MODULE, module);
    REQUIRE(object, INVALID_HANDLE);
    dispose(object);
    END;
}

/* A function's size is the number in brackets after its name: `.param .align 8 .b8 argument[24]`. */
EXPORT int cuModuleGetFunction(uintptr_t *function, uintptr_t module, const char *name) {
    BEGIN("cuModuleGetFunction", 1);
    Object *object = find(MODULE, module);
    REQUIRE(object, INVALID_HANDLE);
    char entry[96];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    char *text = strstr(object->text, entry), *size = text ? strchr(text, '[') : NULL;
    REQUIRE(size, NOT_FOUND);
    Object *made = create(FUNCTION);
    made->module = object;
    made->size = strtoul(size + 1, NULL, 10);
    *function = made->handle;
    END;
}

/* PyCUDA still calls it before each launch, which sets the block again. */
EXPORT int cuFuncSetBlockShape(uintptr_t function, int x, int y, int z) {
    BEGIN("cuFuncSetBlockShape", 1);
    REQUIRE(find(FUNCTION, function) && x && y && z, INVALID_HANDLE);
    END;
}

EXPORT int cuLaunchKernel(uintptr_t function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                          unsigned bz, unsigned shared, uintptr_t stream, void **arguments, void **extra) {
    BEGIN("cuLaunchKernel", 1);
    Object *kernel = find(FUNCTION, function), *object = find(STREAM, stream);
    REQUIRE(kernel && object && kernel->module->live, INVALID_HANDLE);
    REQUIRE(gx && gy && gz && bx && by && bz && !shared, INVALID_VALUE);
    Op op = {.action = KERNEL, .launch = {gx, gy, gz, bx, by, bz}, .size = kernel->size};
    const void *argument = arguments ? arguments[0] : NULL;
    for (; extra && *extra != (void *)ARGUMENT_END; extra += 2) {
        if (*extra == (void *)ARGUMENT_BUFFER) argument = extra[1];
        if (*extra == (void *)ARGUMENT_SIZE) REQUIRE(*(size_t *)extra[1] == kernel->size, INVALID_VALUE);
    }
    REQUIRE(argument && kernel->size <= sizeof op.argument, INVALID_VALUE);
    memcpy(op.argument, argument, kernel->size);
    status = enqueue(object->stream, &op);
    END;
}
