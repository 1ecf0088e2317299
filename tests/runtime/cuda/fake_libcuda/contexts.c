/* Devices and contexts; how calls are found, counted and made to fail. */
#define _GNU_SOURCE
#include "fake.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; /* CUdevice_attribute */

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
int retained[8], retained_ever;
static int initialised;
static Context *primary[8];
static __thread Context *stack[16];
static __thread int depth;

long number(const char *variable, long otherwise) {
    const char *text = getenv(variable);
    return text && *text ? atol(text) : otherwise;
}

static int asked_to_fail(const char *name) {
    static int calls;
    static char last[64];
    const char *asked = getenv("FAKE_CUDA_FAIL");
    if (asked && strcmp(asked, last)) {
        snprintf(last, sizeof last, "%s", asked);
        calls = 0;
    }
    size_t length = strlen(name);
    if (!asked || strncmp(asked, name, length) || asked[length] != ':') return SUCCESS;
    int n = 0, code = 0;
    sscanf(asked + length, ":%d:%d", &n, &code);
    return ++calls >= n ? code : SUCCESS;
}

int enter(const char *name, int needs_context) {
    int code = asked_to_fail(name);
    if (code) return code;
    if (!initialised && strcmp(name, "cuInit")) return NOT_INITIALIZED;
    if (!needs_context) return SUCCESS;
    if (!depth) return INVALID_CONTEXT;
    return stack[depth - 1]->live ? SUCCESS : CONTEXT_IS_DESTROYED;
}

Context *current(void) { return depth ? stack[depth - 1] : NULL; }

EXPORT int cuInit(unsigned flags) {
    BEGIN("cuInit", 0);
    (void)flags;
    REQUIRE(number("FAKE_CUDA_DEVICES", 2) > 0, NO_DEVICE);
    initialised = 1;
    END;
}

EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }

EXPORT int cuDeviceGetCount(int *count) {
    BEGIN("cuDeviceGetCount", 0);
    *count = (int)number("FAKE_CUDA_DEVICES", 2);
    END;
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
    BEGIN("cuDeviceGet", 0);
    REQUIRE(ordinal >= 0 && ordinal < number("FAKE_CUDA_DEVICES", 2), INVALID_DEVICE);
    *device = ordinal;
    END;
}

EXPORT int cuDeviceGetName(char *name, int length, int device) {
    BEGIN("cuDeviceGetName", 0);
    snprintf(name, (size_t)length, "Fake GPU %c", 'A' + device);
    END;
}

static void capability(int device, int *major, int *minor) {
    const char *text = getenv("FAKE_CUDA_CAPABILITY"), *next;
    if (!text || !*text) text = "8.9";
    while (device-- > 0 && (next = strchr(text, ','))) text = next + 1;
    sscanf(text, "%d.%d", major, minor);
}

EXPORT int cuDeviceComputeCapability(int *major, int *minor, int device) {
    BEGIN("cuDeviceComputeCapability", 0);
    capability(device, major, minor);
    END;
}

/* The only attributes that anybody asks for: the two numbers of the compute capability. */
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    BEGIN("cuDeviceGetAttribute", 0);
    REQUIRE(attribute == CAPABILITY_MAJOR || attribute == CAPABILITY_MINOR, INVALID_VALUE);
    int version[2] = {0, 0};
    capability(device, &version[0], &version[1]);
    *value = version[attribute - CAPABILITY_MAJOR];
    END;
}

EXPORT int cuDeviceGetPCIBusId(char *bus, int length, int device) {
    BEGIN("cuDeviceGetPCIBusId", 0);
    snprintf(bus, (size_t)length, "0000:%02x:00.0", device + 1);
    END;
}

EXPORT int cuDevicePrimaryCtxRetain(Context **context, int device) {
    BEGIN("cuDevicePrimaryCtxRetain", 0);
    if (!retained[device]++) {
        primary[device] = calloc(1, sizeof(Context));
        *primary[device] = (Context){.device = device, .primary = 1, .live = 1};
    }
    retained_ever++;
    *context = primary[device];
    END;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    BEGIN("cuDevicePrimaryCtxRelease", 0);
    REQUIRE(retained[device], INVALID_CONTEXT);
    if (!--retained[device]) primary[device]->live = 0;
    END;
}

EXPORT int cuCtxCreate_v2(Context **context, unsigned flags, int device) {
    BEGIN("cuCtxCreate", 0);
    (void)flags;
    *context = calloc(1, sizeof(Context));
    **context = (Context){.device = device, .live = 1};
    stack[depth++] = *context;
    END;
}

EXPORT int cuCtxCreate_v4(Context **context, void *how, unsigned flags, int device) {
    (void)how;
    return cuCtxCreate_v2(context, flags, device);
}

EXPORT int cuCtxDetach(Context *context) {
    BEGIN("cuCtxDetach", 0);
    context->live = 0;
    if (current() == context) depth--;
    END;
}

EXPORT int cuCtxPushCurrent_v2(Context *context) {
    BEGIN("cuCtxPushCurrent", 0);
    REQUIRE(context->live, CONTEXT_IS_DESTROYED);
    REQUIRE(depth < 16, OUT_OF_MEMORY);
    stack[depth++] = context;
    END;
}

EXPORT int cuCtxPopCurrent_v2(Context **context) {
    BEGIN("cuCtxPopCurrent", 0);
    REQUIRE(depth, INVALID_CONTEXT);
    *context = stack[--depth];
    END;
}

EXPORT int cuCtxGetCurrent(Context **context) {
    BEGIN("cuCtxGetCurrent", 0);
    *context = current();
    END;
}

/* How cuda.bindings finds the calls; the newest of each, by its name in this library. */
EXPORT int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *why) {
    static const char *const SUFFIXES[] = {"_v2", ""};
    (void)version, (void)flags;
    Dl_info self;
    dladdr((void *)cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *found = NULL;
    for (size_t i = 0; i < 2 && !*found; i++) {
        char symbol[128];
        snprintf(symbol, sizeof symbol, "%s%s", name, SUFFIXES[i]);
        *found = dlsym(library, symbol);
    }
    if (why) *why = *found ? 0 : 1;
    return *found ? SUCCESS : NOT_FOUND;
}

EXPORT int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, NULL);
}
