/* The functions of CUDA's driver that ONNX Runtime's provider and r2gen call, without a GPU.
 *
 * Environment: R2G_FREE_BYTES and R2G_TOTAL_BYTES (memory of the device), R2G_DEVICES (how many there are).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)
enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };

static int handle; /* a context: nothing is behind it */

/* Contexts of a thread that are pushed and not popped yet. */
static __thread int pushed;

static unsigned long long setting(const char *name, unsigned long long otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtoull(text, 0, 10) : otherwise;
}
static int known(int device) { return device >= 0 && device < (int)setting("R2G_DEVICES", 1) ? SUCCESS : INVALID_DEVICE; }

/* Devices */
int cuInit(unsigned flags) { return setting("R2G_DEVICES", 1) ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = (int)setting("R2G_DRIVER", 13000); return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = setting("R2G_DEVICES", 1); return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return known(ordinal); }
int cuDeviceGetName(char *name, int length, int device) {
  snprintf(name, length, "Imitated H100");
  return known(device);
}
int cuDeviceGetPCIBusId(char *name, int length, int device) {
  if (length < 13) return INVALID_VALUE;
  snprintf(name, length, "0000:%02X:00.0", device + 1);
  return known(device);
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 9 : 0; /* 75: the major compute capability; 76, the minor one, is 0 */
  return known(device);
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  *bytes = setting("R2G_TOTAL_BYTES", 80 * GIB);
  return known(device);
}

/* Contexts, as far as it takes to ask for free memory. */
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &handle; return known(device); }
int cuDevicePrimaryCtxRelease_v2(int device) { return known(device); }
int cuCtxPushCurrent_v2(void *context) { pushed++; return SUCCESS; }
int cuCtxPopCurrent_v2(void **context) {
  if (!pushed) return INVALID_CONTEXT;
  pushed--;
  if (context) *context = &handle;
  return SUCCESS;
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  void *runtime = dlopen("libcudart.so.13", RTLD_LAZY | RTLD_NOLOAD); /* it makes a context of its own current */
  if (!pushed && !runtime) return INVALID_CONTEXT;
  unsigned long long most = setting("R2G_FREE_BYTES", 79 * GIB);
  unsigned long long live = runtime ? *(long long *)dlsym(runtime, "r2g_live_bytes") : 0; /* this process's sessions */
  *free_bytes = most > live ? most - live : 0;
  *total = setting("R2G_TOTAL_BYTES", 80 * GIB);
  return SUCCESS;
}

/* CUTLASS asks for it by name; its kernels do nothing here. */
int cuTensorMapEncodeTiled(void) { return SUCCESS; }
