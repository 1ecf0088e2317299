/* What handles name, what errors are called, and what is left when the process ends. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>

static Object *objects;

Object *create(Kind kind) {
    static uintptr_t handles = 0x5000;
    Object *object = calloc(1, sizeof *object);
    *object = (Object){.kind = kind, .live = 1, .context = current(), .handle = handles += 16, .next = objects};
    return objects = object;
}

Object *find(Kind kind, uintptr_t handle) {
    for (Object *o = objects; o; o = o->next)
        if (o->kind == kind && o->live && o->handle == handle && (o->context == current() || kind == PINNED)) return o;
    return NULL;
}

/* The live object of the current context that holds these bytes; pinned memory is every context's. */
Object *containing(Kind kind, uintptr_t address, size_t size) {
    for (Object *o = objects; o; o = o->next)
        if (o->kind == kind && o->live && (o->context == current() || kind == PINNED) && address >= o->handle &&
            address + size <= o->handle + o->size)
            return o;
    return NULL;
}

void dispose(Object *object) { object->live = 0; }

static const struct {
    int code;
    const char *name, *text;
} ERRORS[] = {
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
};

static int error_text(int code, const char **text, int named) {
    *text = named ? "CUDA_ERROR_UNKNOWN" : "unknown error";
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code) *text = named ? ERRORS[i].name : ERRORS[i].text;
    return SUCCESS;
}

EXPORT int cuGetErrorName(int code, const char **name) { return error_text(code, name, 1); }
EXPORT int cuGetErrorString(int code, const char **text) { return error_text(code, text, 0); }

__attribute__((destructor)) static void report(void) {
    static const char *const NAMES[] = {"streams", "events",    "memory", "pinned",
                                        "modules", "functions", "graphs", "executables"};
    const char *path = getenv("FAKE_CUDA_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    int live[KINDS] = {0}, held = 0;
    for (Object *o = objects; o; o = o->next) live[o->kind] += o->live;
    for (int i = 0; i < 8; i++) held += retained[i];
    for (int i = 0; i < KINDS; i++)
        if (i != FUNCTION) fprintf(file, "%s %d\n", NAMES[i], live[i]);
    fprintf(file, "retained %d\nretained_ever %d\n", held, retained_ever);
    fclose(file);
}
