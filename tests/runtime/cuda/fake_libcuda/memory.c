/* Memory. An address on the device is one that the host cannot read or write: who tries ends the process. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

EXPORT int cuMemGetInfo_v2(size_t *available, size_t *total) {
    BEGIN("cuMemGetInfo", 1);
    *total = (size_t)number("FAKE_CUDA_MEMORY", 256 << 20);
    *available = *total - current()->used;
    END;
}

EXPORT int cuMemAlloc_v2(uintptr_t *address, size_t size) {
    BEGIN("cuMemAlloc", 1);
    REQUIRE(size, INVALID_VALUE);
    REQUIRE(!capturing_forbids(), CAPTURE_UNSUPPORTED);
    REQUIRE(current()->used + size <= (size_t)number("FAKE_CUDA_MEMORY", 256 << 20), OUT_OF_MEMORY);
    Object *memory = create(MEMORY);
    memory->size = size;
    memory->bytes = malloc(size);
    memset(memory->bytes, 0xA5, size);
    memory->handle = (uintptr_t)mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    current()->used += size;
    *address = memory->handle;
    END;
}

EXPORT int cuMemFree_v2(uintptr_t address) {
    BEGIN("cuMemFree", 1);
    Object *memory = find(MEMORY, address);
    REQUIRE(memory, INVALID_VALUE);
    munmap((void *)memory->handle, memory->size);
    current()->used -= memory->size;
    free(memory->bytes);
    dispose(memory);
    END;
}

EXPORT int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    BEGIN("cuMemHostAlloc", 1);
    REQUIRE(size && flags == 1, INVALID_VALUE); /* CU_MEMHOSTALLOC_PORTABLE */
    Object *memory = create(PINNED);
    memory->size = size;
    memory->bytes = *address = calloc(1, size);
    memory->handle = (uintptr_t)*address;
    END;
}

EXPORT int cuMemFreeHost(void *address) {
    BEGIN("cuMemFreeHost", 1);
    Object *memory = find(PINNED, (uintptr_t)address);
    REQUIRE(memory, INVALID_VALUE);
    free(memory->bytes);
    dispose(memory);
    END;
}

/* Copies from and to memory that is not pinned are done before the call returns, as the driver does them. */
static int copy(const Rectangle *rows, uintptr_t host, size_t size, uintptr_t stream) {
    Object *object = find(STREAM, stream);
    if (!object) return INVALID_HANDLE;
    int status = enqueue(object->stream, &(Op){.action = COPY, .rows = *rows});
    if (status == SUCCESS && host && !containing(PINNED, host, size)) finish(object->stream);
    return status;
}

EXPORT int cuMemcpyHtoDAsync_v2(uintptr_t device, const void *host, size_t size, uintptr_t stream) {
    BEGIN("cuMemcpyHtoDAsync", 1);
    REQUIRE(containing(MEMORY, device, size), INVALID_VALUE);
    status = copy(&(Rectangle){.src_host = host, .dst_type = DEVICE_MEMORY, .dst_device = device, .width = size,
                               .height = 1}, (uintptr_t)host, size, stream);
    END;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *host, uintptr_t device, size_t size, uintptr_t stream) {
    BEGIN("cuMemcpyDtoHAsync", 1);
    REQUIRE(containing(MEMORY, device, size), INVALID_VALUE);
    status = copy(&(Rectangle){.src_type = DEVICE_MEMORY, .src_device = device, .dst_host = host, .width = size,
                               .height = 1}, (uintptr_t)host, size, stream);
    END;
}

EXPORT int cuMemcpy2DAsync_v2(const Rectangle *rows, uintptr_t stream) {
    BEGIN("cuMemcpy2DAsync", 1);
    REQUIRE(rows->src_type == DEVICE_MEMORY && rows->dst_type == DEVICE_MEMORY, INVALID_VALUE);
    REQUIRE(rows->width <= rows->src_pitch && rows->width <= rows->dst_pitch, INVALID_VALUE);
    size_t source = rows->src_pitch * (rows->height - 1) + rows->width;
    size_t target = rows->dst_pitch * (rows->height - 1) + rows->width;
    REQUIRE(containing(MEMORY, rows->src_device, source), INVALID_VALUE);
    REQUIRE(containing(MEMORY, rows->dst_device, target), INVALID_VALUE);
    status = copy(rows, 0, 0, stream);
    END;
}

EXPORT int cuMemsetD8Async(uintptr_t device, unsigned char byte, size_t size, uintptr_t stream) {
    BEGIN("cuMemsetD8Async", 1);
    Object *object = find(STREAM, stream);
    REQUIRE(object, INVALID_HANDLE);
    REQUIRE(containing(MEMORY, device, size), INVALID_VALUE);
    status = enqueue(object->stream, &(Op){.action = FILL, .address = device, .byte = byte, .size = size});
    END;
}
