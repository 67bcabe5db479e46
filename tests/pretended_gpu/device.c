/* What torch asks of a CUDA runtime and driver before and around kernels, answered for one
   pretended H100. No kernel runs: `pretend.py` computes on the CPU. Loaded before the real ones. */
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>

#define NOTHING(name) int name() { return 0; }
#define GIVES(name, type, value) int name(type *out) { *out = (value); return 0; }

/* the driver */
NOTHING(cuInit)
GIVES(cuDriverGetVersion, int, 13000)
GIVES(cuDeviceGetCount, int, 1)
GIVES(cuCtxGetCurrent, void *, (void *)16)
int cuGetErrorString(int error, const char **text) { *text = "pretended"; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0; *active = 1; return 0;
}

/* the device */
GIVES(cudaGetDeviceCount, int, 1)
GIVES(cudaGetDevice, int, 0)
GIVES(cudaDriverGetVersion, int, 13000)
GIVES(cudaRuntimeGetVersion, int, 13000)
GIVES(cudaDeviceCanAccessPeer, int, 0)
GIVES(cudaDeviceGetAttribute, int, 1024)
NOTHING(cudaSetDevice)
NOTHING(cudaGetLastError)
NOTHING(cudaPeekAtLastError)
NOTHING(cudaDeviceSynchronize)
int cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "NVIDIA H100 (pretended)");
    p->totalGlobalMem = 80ull << 30;
    p->major = 9;
    p->multiProcessorCount = 132;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsPerBlock = 1024;
    p->warpSize = 32;
    return 0;
}
int cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return cudaGetDeviceProperties(p, d); }

/* streams and events, which are numbers */
static long handle = 0x1000;
GIVES(cudaStreamCreateWithPriority, long, handle += 16)
GIVES(cudaEventCreateWithFlags, long, handle += 16)
GIVES(cudaEventElapsedTime, float, 1)
NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamSynchronize)
NOTHING(cudaStreamQuery)
NOTHING(cudaStreamWaitEvent)
NOTHING(cudaEventRecord)
NOTHING(cudaEventRecordWithFlags)
NOTHING(cudaEventQuery)
NOTHING(cudaEventSynchronize)
NOTHING(cudaEventDestroy)
NOTHING(cudaThreadExchangeStreamCaptureMode)
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -1; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamGetCaptureInfo_v2(void *stream, int *status) { *status = 0; return 0; }

/* memory; that of the host is pinned where it comes from here */
static struct { char *start, *end; } pinned[65536];
static int used = 0;
int cudaMalloc(void **p, size_t n) { *p = calloc(1, n); return 0; }
int cudaFree(void *p) { free(p); return 0; }
int cudaHostAlloc(void **p, size_t n, unsigned flags) {
    if (used == 65536) abort();
    *p = malloc(n);
    pinned[used].start = *p;
    pinned[used++].end = (char *)*p + n;
    return 0;
}
int cudaFreeHost(void *p) {
    for (int i = 0; i < used; i++)
        if (pinned[i].start == p) pinned[i].start = pinned[i].end = 0;
    free(p);
    return 0;
}
int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *p) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeUnregistered;
    for (int i = 0; i < used; i++)
        if (pinned[i].start <= (char *)p && (char *)p < pinned[i].end) found->type = cudaMemoryTypeHost;
    return 0;
}
int cudaMemGetInfo(size_t *free, size_t *total) { *free = 79ull << 30; *total = 80ull << 30; return 0; }
