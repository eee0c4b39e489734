/* A stand-in for CUDA's driver, for tests: memory of the host in place of a GPU's, and a stream that does its work only
 * when somebody waits for it, as a GPU may. Addresses are checked: what is not allocated, or on the other side, is
 * refused. Time is made up: work says how long it took, and events read that clock.
 *
 * FAKE_GPU names the architecture, such as 86; empty for a driver without a GPU.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, CAPTURE_UNSUPPORTED = 900 };
enum { COPY, CALL, EVENT, MOST = 4096 };

typedef struct { int kind; char *to; const char *from; size_t size; void (*work)(void *); void *argument; } Op;
typedef struct { Op ops[MOST]; int count; } Queue;
typedef struct { uintptr_t address; size_t size; int on_device; } Block;

static Block blocks[MOST];
static int block_count;
static Queue stream, *recorded;
static double now_ms;

static int holds(uintptr_t address, size_t size, int on_device) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i].on_device == on_device && address >= blocks[i].address && address + size <= blocks[i].address + blocks[i].size)
            return 1;
    return 0;
}

static int put(Op op) {
    Queue *queue = recorded ? recorded : &stream;
    if (queue->count == MOST) return OUT_OF_MEMORY;
    queue->ops[queue->count++] = op;
    return OK;
}

static void do_all(void) {
    for (int i = 0; i < stream.count; i++) {
        Op op = stream.ops[i];
        if (op.kind == COPY) memcpy(op.to, op.from, op.size);
        if (op.kind == CALL) op.work(op.argument);
        if (op.kind == EVENT) *(double *)op.to = now_ms;
    }
    stream.count = 0;
}

static int allocate(uintptr_t *address, size_t size, int on_device) {
    if (!size || block_count == MOST) return INVALID_VALUE;
    blocks[block_count++] = (Block){*address = (uintptr_t)malloc(size), size, on_device};
    memset((void *)*address, 0xA5, size);
    return OK;
}

static int release(uintptr_t address, int on_device) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i].address == address && blocks[i].on_device == on_device) {
            free((void *)address);
            blocks[i] = blocks[--block_count];
            return OK;
        }
    return INVALID_VALUE;
}

static const char *gpu(void) { const char *text = getenv("FAKE_GPU"); return text ? text : "86"; }

int cuInit(unsigned flags) { return flags || !*gpu() ? NO_DEVICE : OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? INVALID_VALUE : OK; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stand-in GPU", size); return device; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int compute = atoi(gpu());
    *value = attribute == 75 ? compute / 10 : compute % 10;
    return attribute == 75 || attribute == 76 ? device : INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &stream; return device; }
int cuCtxSetCurrent(void *context) { return context == &stream ? OK : INVALID_VALUE; }
int cuStreamCreate(void **made, unsigned flags) { *made = &stream; return flags == 1 ? OK : INVALID_VALUE; }
int cuStreamSynchronize(void *which) {
    if (which != &stream) return INVALID_VALUE;
    if (recorded) return CAPTURE_UNSUPPORTED;
    do_all();
    return OK;
}
int cuMemAlloc_v2(unsigned long long *address, size_t size) {
    uintptr_t made;
    int code = allocate(&made, size, 1);
    *address = made;
    return code;
}
int cuMemFree_v2(unsigned long long address) { return release(address, 1); }
int cuMemAllocHost_v2(void **address, size_t size) { return allocate((uintptr_t *)address, size, 0); }
int cuMemFreeHost(void *address) { return release((uintptr_t)address, 0); }
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t size, void *which) {
    if (which != &stream || !holds(to, size, 1) || !holds((uintptr_t)from, size, 0)) return INVALID_VALUE;
    return put((Op){.kind = COPY, .to = (char *)(uintptr_t)to, .from = from, .size = size});
}
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t size, void *which) {
    if (which != &stream || !holds(from, size, 1) || !holds((uintptr_t)to, size, 0)) return INVALID_VALUE;
    return put((Op){.kind = COPY, .to = to, .from = (const char *)(uintptr_t)from, .size = size});
}
int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(double)); return (int)flags; }
int cuEventRecord(void *event, void *which) { return which == &stream ? put((Op){.kind = EVENT, .to = event}) : INVALID_VALUE; }
int cuEventElapsedTime(float *ms, void *first, void *last) { *ms = (float)(*(double *)last - *(double *)first); return OK; }
int cuStreamBeginCapture_v2(void *which, int mode) {
    if (which != &stream || mode != 2 || recorded) return INVALID_VALUE;
    recorded = calloc(1, sizeof(Queue));
    return OK;
}
int cuStreamEndCapture(void *which, void **graph) {
    if (which != &stream || !recorded) return INVALID_VALUE;
    *graph = recorded;
    recorded = NULL;
    return OK;
}
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    *made = malloc(sizeof(Queue));
    memcpy(*made, graph, sizeof(Queue));
    return (int)flags;
}
int cuGraphLaunch(void *graph, void *which) {
    for (int i = 0; i < ((Queue *)graph)->count; i++) put(((Queue *)graph)->ops[i]);
    return which == &stream ? OK : INVALID_VALUE;
}
int cuGraphExecDestroy(void *graph) { free(graph); return OK; }
int cuGraphDestroy(void *graph) { free(graph); return OK; }
int cuGetErrorName(int code, const char **name) {
    *name = code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : code == CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : "CUDA_ERROR_INVALID_VALUE";
    return OK;
}

/* What the stand-in of TensorRT and tests call. */
int fake_launch(void *which, void (*work)(void *), void *argument) {
    return which == &stream ? put((Op){.kind = CALL, .work = work, .argument = argument}) : INVALID_VALUE;
}
int fake_is_capturing(void) { return recorded != NULL; }
int fake_holds(unsigned long long address, size_t size) { return holds(address, size, 1); }
int fake_blocks(void) { return block_count; }
void fake_spend(double ms) { now_ms += ms; }
