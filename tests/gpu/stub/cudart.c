/* A CUDA runtime with one device that does nothing: streams and events are numbers, device memory is
 * the host's, and a kernel that is really launched ends the process. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOTHING(name, ...) cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
#define WRITES(name, what, ...) cudaError_t name(__VA_ARGS__) { what; return cudaSuccess; }

static long handle = 0x1000;

/* devices */
WRITES(cudaGetDeviceCount, *n = 1, int *n)
WRITES(cudaGetDevice, *d = 0, int *d)
NOTHING(cudaSetDevice, int d)
NOTHING(cudaInitDevice, int d, unsigned f, unsigned g)
NOTHING(cudaDeviceSynchronize, void)
WRITES(cudaDeviceGetStreamPriorityRange, (*a = 0, *b = -5), int *a, int *b)
WRITES(cudaDeviceGetAttribute, *v = a == cudaDevAttrMultiProcessorCount ? 132 : 0, int *v, enum cudaDeviceAttr a, int d)
WRITES(cudaDeviceGetPCIBusId, snprintf(s, n, "0000:00:00.0"), char *s, int n, int d)
WRITES(cudaDeviceCanAccessPeer, *a = 0, int *a, int d, int e)
NOTHING(cudaDeviceEnablePeerAccess, int d, unsigned f)
WRITES(cudaDriverGetVersion, *v = CUDART_VERSION, int *v)
WRITES(cudaRuntimeGetVersion, *v = CUDART_VERSION, int *v)
WRITES(cudaMemGetInfo, (*a = 70ull << 30, *b = 80ull << 30), size_t *a, size_t *b)

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "pretended GPU");
  p->totalGlobalMem = 80ull << 30;
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->maxThreadsPerMultiProcessor = 2048;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 50 << 20;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  return cudaSuccess;
}

/* streams and events */
WRITES(cudaStreamCreate, *s = (cudaStream_t)(handle += 16), cudaStream_t *s)
WRITES(cudaStreamCreateWithFlags, *s = (cudaStream_t)(handle += 16), cudaStream_t *s, unsigned f)
WRITES(cudaStreamCreateWithPriority, *s = (cudaStream_t)(handle += 16), cudaStream_t *s, unsigned f, int p)
NOTHING(cudaStreamDestroy, cudaStream_t s)
WRITES(cudaStreamGetPriority, *p = 0, cudaStream_t s, int *p)
NOTHING(cudaStreamQuery, cudaStream_t s)
NOTHING(cudaStreamSynchronize, cudaStream_t s)
NOTHING(cudaStreamWaitEvent, cudaStream_t s, cudaEvent_t e, unsigned f)
NOTHING(cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode *m)
WRITES(cudaEventCreate, *e = (cudaEvent_t)(handle += 16), cudaEvent_t *e)
WRITES(cudaEventCreateWithFlags, *e = (cudaEvent_t)(handle += 16), cudaEvent_t *e, unsigned f)
NOTHING(cudaEventDestroy, cudaEvent_t e)
NOTHING(cudaEventRecord, cudaEvent_t e, cudaStream_t s)
NOTHING(cudaEventRecordWithFlags, cudaEvent_t e, cudaStream_t s, unsigned f)
NOTHING(cudaEventQuery, cudaEvent_t e)
NOTHING(cudaEventSynchronize, cudaEvent_t e)
WRITES(cudaEventElapsedTime, *t = 1, float *t, cudaEvent_t a, cudaEvent_t b)

/* graphs: captures begin and end, and nothing is in them */
static cudaStream_t capturing = 0;
static unsigned long long captures = 0;
#define STATUS(s) (capturing && s == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone)

WRITES(cudaStreamBeginCapture, (capturing = s, captures++), cudaStream_t s, enum cudaStreamCaptureMode m)
WRITES(cudaStreamEndCapture, (capturing = 0, *g = (cudaGraph_t)(handle += 16)), cudaStream_t s, cudaGraph_t *g)
WRITES(cudaStreamIsCapturing, *c = STATUS(s), cudaStream_t s, enum cudaStreamCaptureStatus *c)
WRITES(cudaStreamGetCaptureInfo, (*c = STATUS(s), id ? *id = captures : 0, g ? *g = (cudaGraph_t)16 : 0, m ? *m = 0 : 0),
       cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id, cudaGraph_t *g,
       const cudaGraphNode_t **n, const cudaGraphEdgeData **e, size_t *m)
WRITES(cudaGraphGetNodes, *n = 1, cudaGraph_t g, cudaGraphNode_t *a, size_t *n)
WRITES(cudaGraphInstantiate, *e = (cudaGraphExec_t)(handle += 16), cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f)
WRITES(cudaGraphInstantiateWithFlags, *e = (cudaGraphExec_t)(handle += 16), cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f)
NOTHING(cudaGraphLaunch, cudaGraphExec_t e, cudaStream_t s)
NOTHING(cudaGraphDestroy, cudaGraph_t g)
NOTHING(cudaGraphExecDestroy, cudaGraphExec_t e)
WRITES(cudaUserObjectCreate, *o = (cudaUserObject_t)(handle += 16), cudaUserObject_t *o, void *p, cudaHostFn_t d, unsigned n, unsigned f)
NOTHING(cudaUserObjectRelease, cudaUserObject_t o, unsigned n)
NOTHING(cudaGraphRetainUserObject, cudaGraph_t g, cudaUserObject_t o, unsigned n, unsigned f)

/* errors */
NOTHING(cudaGetLastError, void)
NOTHING(cudaPeekAtLastError, void)
const char *cudaGetErrorString(cudaError_t e) { return "pretended"; }
const char *cudaGetErrorName(cudaError_t e) { return "pretended"; }

/* memory; pinned blocks are remembered, so that `is_pinned` is true of them */
#define PINNED 100000
static struct { char *start; size_t size; } pinned[PINNED];
static int blocks = 0;

static void pin(void *p, size_t n) {
  if (blocks < PINNED) {
    pinned[blocks].start = p;
    pinned[blocks++].size = n;
  }
}

WRITES(cudaMalloc, *p = aligned_alloc(512, (n + 511) / 512 * 512), void **p, size_t n)
WRITES(cudaFree, free(p), void *p)
WRITES(cudaHostAlloc, (*p = aligned_alloc(4096, (n + 4095) / 4096 * 4096), pin(*p, n)), void **p, size_t n, unsigned f)
cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
NOTHING(cudaFreeHost, void *p) /* kept, since it stays in the table */
WRITES(cudaHostRegister, pin(p, n), void *p, size_t n, unsigned f)
NOTHING(cudaHostUnregister, void *p)
WRITES(cudaMemcpy, memcpy(d, s, n), void *d, const void *s, size_t n, enum cudaMemcpyKind k)
WRITES(cudaMemcpyAsync, memcpy(d, s, n), void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t)
WRITES(cudaMemset, memset(d, v, n), void *d, int v, size_t n)
WRITES(cudaMemsetAsync, memset(d, v, n), void *d, int v, size_t n, cudaStream_t t)

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  const char *at = p;
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeUnregistered;
  for (int i = 0; i < blocks; i++)
    if (at >= pinned[i].start && at < pinned[i].start + pinned[i].size) a->type = cudaMemoryTypeHost;
  return cudaSuccess;
}

/* kernels */
WRITES(cudaFuncGetAttributes, memset(a, 0, sizeof *a), struct cudaFuncAttributes *a, const void *f)
NOTHING(cudaFuncSetAttribute, const void *f, enum cudaFuncAttribute a, int v)

static cudaError_t launched(void) {
  if (captures) return cudaSuccess; /* the state of random numbers, which captures and replays write */
  fprintf(stderr, "pretended CUDA runtime: a real kernel was launched\n");
  abort();
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) { return launched(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launched(); }
