/* A CUDA runtime without a GPU: memory is the host's, kernels do nothing, copies are logged.
 *
 * It is enough for ONNX Runtime's CUDA provider to place a graph's nodes, to open a session and to run it: placement and the
 * number, size and direction of copies are the provider's own, results are not. What is not declared here the provider does
 * not call. Every function answers as CUDA's programming guide says it does where nothing goes wrong.
 *
 * Environment: R2G_FREE_BYTES and R2G_TOTAL_BYTES (memory of the device), R2G_DEVICES (how many there are).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <cuda_runtime_api.h>

#define GIB (1ull << 30)

/* What Python asks for by ctypes; the index of both arrays is cudaMemcpyKind: 1 up, 2 down, 3 within the device. */
long long r2g_count[16], r2g_bytes[16];
long long r2g_launches, r2g_syncs, r2g_allocs, r2g_captures, r2g_graphs;
long long r2g_live_bytes; /* allocated on the device and not freed */

static int handle; /* streams, events, graphs: nothing is behind any of them */
static int capturing;
static __thread int current_device;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned long long setting(const char *name, unsigned long long otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtoull(text, 0, 10) : otherwise;
}

/* The log of copies since the last reset. A call copies up to `most` entries out and answers how many there are. */
static struct { int kind; long long bytes; } *entries;
static long long length, room;

static void note(size_t bytes, enum cudaMemcpyKind kind) {
  pthread_mutex_lock(&lock);
  r2g_count[kind & 15]++;
  r2g_bytes[kind & 15] += bytes;
  if (length == room) entries = realloc(entries, (room = room ? 2 * room : 1024) * sizeof *entries);
  entries[length].kind = kind;
  entries[length++].bytes = bytes;
  pthread_mutex_unlock(&lock);
}

long long r2g_log(int *kinds, long long *bytes, long long most) {
  pthread_mutex_lock(&lock);
  for (long long i = 0; i < length && i < most; i++) kinds[i] = entries[i].kind, bytes[i] = entries[i].bytes;
  long long answer = length;
  pthread_mutex_unlock(&lock);
  return answer;
}

void r2g_reset(void) {
  pthread_mutex_lock(&lock);
  length = 0;
  memset(r2g_count, 0, sizeof r2g_count);
  memset(r2g_bytes, 0, sizeof r2g_bytes);
  r2g_launches = r2g_syncs = r2g_captures = r2g_graphs = 0;
  pthread_mutex_unlock(&lock);
}

/* Devices: Hopper, because the most kernels of the provider are for it. */
cudaError_t cudaGetDeviceCount(int *count) {
  *count = setting("R2G_DEVICES", 1);
  return *count ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int *device) { *device = current_device; return 0; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= (int)setting("R2G_DEVICES", 1)) return cudaErrorInvalidDevice;
  current_device = device;
  return 0;
}
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Imitated H100");
  p->major = 9;
  p->multiProcessorCount = 132;
  p->totalGlobalMem = setting("R2G_TOTAL_BYTES", 80 * GIB);
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->l2CacheSize = 50 << 20;
  p->memoryBusWidth = 5120;
  p->textureAlignment = 512;
  p->cooperativeLaunch = 1;
  return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: *value = 65535; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 1;
  }
  return 0;
}

/* Memory. The size of a block stands in front of it, so that a free can be counted; CUDA aligns to 512 bytes. */
#define ALIGNMENT 512
static cudaError_t take(void **pointer, size_t bytes, int on_device) {
  size_t *block;
  pthread_mutex_lock(&lock);
  int full = on_device && r2g_live_bytes + bytes > setting("R2G_FREE_BYTES", 79 * GIB);
  if (!full && on_device) r2g_live_bytes += bytes;
  r2g_allocs++;
  pthread_mutex_unlock(&lock);
  if (full || posix_memalign((void **)&block, ALIGNMENT, bytes + ALIGNMENT)) return cudaErrorMemoryAllocation;
  block[0] = on_device ? bytes : 0;
  *pointer = (char *)block + ALIGNMENT;
  if (bytes < (64u << 20)) memset(*pointer, 0, bytes); /* large blocks hold weights, which are written anyway */
  return 0;
}
static cudaError_t give_back(void *pointer) {
  if (!pointer) return 0;
  size_t *block = (size_t *)((char *)pointer - ALIGNMENT);
  pthread_mutex_lock(&lock);
  r2g_live_bytes -= block[0];
  pthread_mutex_unlock(&lock);
  free(block);
  return 0;
}
cudaError_t cudaMalloc(void **p, size_t n) { return take(p, n, 1); }
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return take(p, n, 1); }
cudaError_t cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t m, cudaStream_t s) { return take(p, n, 1); }
cudaError_t cudaMallocHost(void **p, size_t n) { return take(p, n, 0); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return take(p, n, 0); }
cudaError_t cudaFree(void *p) { return give_back(p); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return give_back(p); }
cudaError_t cudaFreeHost(void *p) { return give_back(p); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  unsigned long long most = setting("R2G_FREE_BYTES", 79 * GIB);
  *total = setting("R2G_TOTAL_BYTES", 80 * GIB);
  *free_bytes = most > (unsigned long long)r2g_live_bytes ? most - r2g_live_bytes : 0;
  return 0;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeUnregistered;
  return 0;
}

/* Memory pools: an allocation from one is an allocation. */
cudaError_t cudaMemPoolCreate(cudaMemPool_t *m, const struct cudaMemPoolProps *p) { *m = (cudaMemPool_t)&handle; return 0; }
cudaError_t cudaMemPoolDestroy(cudaMemPool_t m) { return 0; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t m, enum cudaMemPoolAttr a, void *v) { *(unsigned long long *)v = 0; return 0; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t m, enum cudaMemPoolAttr a, void *v) { return 0; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t m, size_t n) { return 0; }

/* Copies happen at once, whatever the stream. */
static cudaError_t copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  note(bytes, kind);
  memmove(to, from, bytes);
  return 0;
}
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { return copy(d, s, n, k); }
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) { return copy(d, s, n, k); }
cudaError_t cudaMemcpy2DAsync(void *d, size_t to_pitch, const void *s, size_t from_pitch, size_t width, size_t height,
                              enum cudaMemcpyKind k, cudaStream_t st) {
  note(width * height, k);
  for (size_t row = 0; row < height; row++) memmove((char *)d + row * to_pitch, (const char *)s + row * from_pitch, width);
  return 0;
}
cudaError_t cudaMemcpyFromSymbol(void *d, const void *s, size_t n, size_t o, enum cudaMemcpyKind k) { memset(d, 0, n); return 0; }
cudaError_t cudaMemset(void *d, int v, size_t n) { memset(d, v, n); return 0; }
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t s) { memset(d, v, n); return 0; }

/* Streams and events. A stream that is being captured cannot be waited for: that is an error as on a GPU. */
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = (cudaStream_t)&handle; return 0; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = (cudaStream_t)&handle; return 0; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  r2g_syncs++;
  return capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { r2g_syncs++; return 0; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = (cudaEvent_t)&handle; return 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = (cudaEvent_t)&handle; return 0; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return 0; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return 0; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { r2g_syncs++; return 0; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }

/* Graphs are captured and launched, and do nothing. */
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return 0;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) { r2g_captures++; capturing = 1; return 0; }
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { capturing = 0; *g = (cudaGraph_t)&handle; return 0; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) { *e = (cudaGraphExec_t)&handle; return 0; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { r2g_graphs++; return 0; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return 0; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { return 0; }

/* Errors */
cudaError_t cudaGetLastError(void) { return 0; }
cudaError_t cudaPeekAtLastError(void) { return 0; }
const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : "imitated"; }
const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "imitated"; }

/* Kernels are counted, and do nothing. */
static cudaError_t launch(void) { r2g_launches++; return 0; }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(); }
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launch(); }
cudaError_t __cudaLaunchKernel(void *k, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(); }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *argument) { f(argument); return 0; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 64;
  return 0;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) { return 0; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t m, unsigned fl) {
  *n = 2;
  return 0;
}

/* Kernels in libraries and driver functions by name: CUTLASS asks for them. */
cudaError_t cudaLibraryLoadData(cudaLibrary_t *l, const void *c, enum cudaJitOption *o, void **v, unsigned n,
                                enum cudaLibraryOption *lo, void **lv, unsigned ln) {
  *l = (cudaLibrary_t)&handle;
  return 0;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t *k, cudaLibrary_t l, const char *n) { *k = (cudaKernel_t)&handle; return 0; }
cudaError_t cudaLibraryUnload(cudaLibrary_t l) { return 0; }
cudaError_t __cudaGetKernel(void **k, const void *f) { *k = &handle; return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  *function = 0;
  if (result) *result = cudaDriverEntryPointSymbolNotFound;
  return cudaErrorSymbolNotFound;
}

/* What nvcc's generated code calls when a library with kernels is loaded. */
void **__cudaRegisterFatBinary(void *f) { static void *h[2]; return h; }
void __cudaRegisterFatBinaryEnd(void **h) {}
void __cudaUnregisterFatBinary(void **h) {}
void __cudaRegisterFunction(void **h, const char *f, char *d, const char *n, int t, void *a, void *b, void *c, void *e, int *w) {}
void __cudaRegisterVar(void **h, char *v, char *d, const char *n, int e, size_t s, int c, int g) {}
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, void *s) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *m, void *s) {
  *g = *b = (dim3){1, 1, 1};
  *m = 0;
  *(void **)s = &handle;
  return 0;
}
