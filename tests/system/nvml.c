/* NVIDIA's management library of a machine with two GPUs; the second one does not answer. */
#include <stddef.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory;

static int running = 0;

int nvmlInit_v2(void) { running += 1; return 0; }
int nvmlShutdown(void) { running -= 1; return 0; }
int users(void) { return running; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "580.65", length); return running ? 0 : 1; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &running; return index ? 15 : 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    (void)device; *found = (memory){24ULL << 30, 20ULL << 30, 4ULL << 30}; return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    (void)device; *major = 8; *minor = 9; return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device; strncpy(name, "Imitated GPU", length); return 0;
}
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *clock) { (void)device; *clock = 1000 + kind; return 0; }
int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *limit) { (void)device; *limit = 300000; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    (void)device; *energy = 5000; return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    (void)device; *reasons = 0x41; return 0;
}
