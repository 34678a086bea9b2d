/* A device that launches nothing: answers the CUDA runtime, so that torch's own host code runs without a GPU.

   Device memory is address space that nothing writes to and that reads as zeros; kernels, copies and library calls
   are counted and succeed. What is not defined here returns 0 (stubs.c, which build.py writes). */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define GIB (1ull << 30)
#define REGION (8192 * GIB)

static _Atomic long launches, synchronisations, forbidden;
static size_t used, next;
static char *region;
static _Atomic long handles = 1;
static _Thread_local int device;
static _Thread_local cudaError_t last;
static _Atomic int capturing;
static _Atomic(cudaStream_t) captured;

/* What the tests read. */
EXPORT long null_cuda_launches(void) { return launches; }
EXPORT long null_cuda_synchronisations(void) { return synchronisations; }
EXPORT long null_cuda_forbidden(void) { return forbidden; }
EXPORT void null_cuda_count(void) { launches++; }

static size_t capacity(void) {
    const char *text = getenv("NULL_CUDA_GIB");
    return (text ? strtoull(text, NULL, 10) : 80) * GIB;
}

__attribute__((constructor)) static void reserve(void) {
    region = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) {
        perror("null_cuda: address space");
        abort();
    }
    madvise(region, REGION, MADV_DONTDUMP);
}

static int on_device(const void *pointer) {
    return (const char *)pointer >= region && (const char *)pointer < region + REGION;
}

static cudaError_t fail(cudaError_t error) {
    last = error;
    return error;
}

/* As on a device: waiting inside a capture is an error that ends it. */
static cudaError_t wait(void) {
    synchronisations++;
    if (capturing) {
        forbidden++;
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

static void *handle(void) { return (void *)(handles++ << 4); }

/* Devices */
EXPORT cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int *index) { *index = device; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int index) {
    if (index != 0) return fail(cudaErrorInvalidDevice);
    device = index;
    return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
EXPORT cudaError_t cudaGetLastError(void) { cudaError_t error = last; last = cudaSuccess; return error; }
EXPORT cudaError_t cudaPeekAtLastError(void) { return last; }
EXPORT const char *cudaGetErrorString(cudaError_t error) { return error ? "null device error" : "no error"; }
EXPORT const char *cudaGetErrorName(cudaError_t error) { return error ? "nullDeviceError" : "cudaSuccess"; }

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int index) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "null device");
    properties->major = 9;
    properties->totalGlobalMem = capacity();
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->sharedMemPerMultiprocessor = 228 << 10;
    properties->l2CacheSize = 50 << 20;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 0x7fffffff;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->textureAlignment = 512;
    properties->memoryBusWidth = 5120;
    properties->unifiedAddressing = properties->managedMemory = properties->concurrentKernels = 1;
    properties->cooperativeLaunch = 1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int index) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    default: *value = 0;
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int index) {
    snprintf(text, size, "0000:00:00.0");
    return cudaSuccess;
}

/* Memory */
#define MOST 65536
static struct { void *start; size_t size; } blocks[MOST]; /* torch asks for few, large ones */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

EXPORT cudaError_t cudaMalloc(void **pointer, size_t size) {
    size_t rounded = (size + 511) & ~(size_t)511;
    int index = 0;
    pthread_mutex_lock(&lock);
    while (index < MOST && blocks[index].start) index++;
    if (used + rounded > capacity() || next + rounded > REGION || index == MOST) {
        pthread_mutex_unlock(&lock);
        return fail(cudaErrorMemoryAllocation);
    }
    blocks[index].start = *pointer = region + next;
    blocks[index].size = rounded;
    next += rounded;
    used += rounded;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void *pointer) {
    if (!pointer) return cudaSuccess; /* the idiom that makes a context */
    pthread_mutex_lock(&lock);
    for (int index = 0; index < MOST; index++)
        if (blocks[index].start == pointer) {
            used -= blocks[index].size;
            blocks[index].start = NULL;
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = capacity();
    *available = *total - used;
    return cudaSuccess;
}
EXPORT cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    return posix_memalign(pointer, 4096, size ? size : 1) ? fail(cudaErrorMemoryAllocation) : cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void *pointer) { free(pointer); return cudaSuccess; }
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = on_device(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    if (on_device(pointer)) attributes->devicePointer = (void *)pointer;
    else attributes->hostPointer = (void *)pointer;
    return cudaSuccess;
}
static void copied(void *target, const void *source, size_t size) {
    launches++;
    if (on_device(target)) return;
    if (on_device(source)) memset(target, 0, size);
    else memcpy(target, source, size);
}
EXPORT cudaError_t cudaMemcpyAsync(
    void *target, const void *source, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    copied(target, source, size);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind) {
    copied(target, source, size);
    return wait();
}
EXPORT cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t stream) {
    launches++;
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void *target, int value, size_t size) { launches++; return cudaSuccess; }
EXPORT cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) { return cudaMalloc(pointer, 4096); }

/* Streams, events, waiting */
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) { *stream = handle(); return cudaSuccess; }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return cudaStreamCreate(stream);
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; return cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = handle(); return cudaSuccess; }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait(); }
EXPORT cudaError_t cudaDeviceSynchronize(void) { return wait(); }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait(); }
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    function(data);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamAddCallback(
    cudaStream_t stream, cudaStreamCallback_t callback, void *data, unsigned flags) {
    callback(stream, cudaSuccess, data);
    return cudaSuccess;
}

/* Kernels */
struct configuration { dim3 grid, block; size_t shared; cudaStream_t stream; };
static _Thread_local struct configuration pushed[16];
static _Thread_local int depth;
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    pushed[depth++ & 15] = (struct configuration){grid, block, shared, stream};
    return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    struct configuration *top = &pushed[--depth & 15];
    *grid = top->grid;
    *block = top->block;
    *shared = top->shared;
    *(cudaStream_t *)stream = top->stream;
    return cudaSuccess;
}
static cudaError_t launched(dim3 grid, dim3 block) {
    unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
    if (!threads || threads > 1024 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        return fail(cudaErrorInvalidConfiguration);
    launches++;
    return cudaSuccess;
}
EXPORT void **__cudaRegisterFatBinary(void *binary) { static void *any; return &any; }
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    return launched(grid, block);
}
EXPORT cudaError_t cudaLaunchKernel(
    const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    return launched(grid, block);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
    return launched(config->gridDim, config->blockDim);
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    attributes->maxDynamicSharedSizeBytes = 227 << 10;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *function, int threads, size_t shared, unsigned flags) {
    *blocks = threads > 1024 ? 1 : 2048 / (threads < 32 ? 32 : threads);
    return cudaSuccess;
}

/* Graphs */
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    captured = stream;
    capturing = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = 0;
    *graph = handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capturing && stream == captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges, size_t *count) {
    cudaStreamIsCapturing(stream, status);
    if (id) *id = capturing;
    if (graph) *graph = capturing ? handle() : NULL;
    if (count) *count = 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    *exec = handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) { launches++; return cudaSuccess; }
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = 1; /* torch warns of empty ones */
    return cudaSuccess;
}

/* The driver, as the runtime hands it out */
static int success(void) { return 0; }
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice index, unsigned *flags, int *active) {
    *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice index) {
    return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, index); /* the same numbers */
}
EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = handle(); return CUDA_SUCCESS; }
EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = handle();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
    launches++;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)&region; return CUDA_SUCCESS; }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(
    const char *symbol, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
    *function = strcmp(symbol, "cuDevicePrimaryCtxGetState") ? (void *)success : (void *)cuDevicePrimaryCtxGetState;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

/* Libraries of matrix products, without their headers, which want more of CUDA than torch brings */
static int created(void **created) { *created = handle(); return 0; }
EXPORT int cublasCreate_v2(void **product) { return created(product); }
EXPORT int cublasGetMathMode(void *product, int *mode) { return *mode = 0; }
EXPORT int cublasGetPointerMode_v2(void *product, int *mode) { return *mode = 0; }
EXPORT int cublasLtMatmulDescCreate(void **description, int computes, int scales) { return created(description); }
EXPORT int cublasLtMatrixLayoutCreate(void **layout, int type, unsigned long rows, unsigned long columns, long stride) {
    return created(layout);
}
EXPORT int cublasLtMatmulPreferenceCreate(void **preference) { return created(preference); }
EXPORT int cublasLtMatmulAlgoGetHeuristic(
    void *product, void *operation, void *a, void *b, void *c, void *d, void *preference, int requested,
    char *results, int *found) {
    memset(results, 0, 96); /* one cublasLtMatmulHeuristicResult_t: success, no workspace */
    *found = 1;
    return 0;
}
EXPORT int cusolverDnCreate(void **solver) { return created(solver); }
