/* An NVIDIA driver with two GPUs of compute capability 8.6 and 8.9, as far as r2gen asks: no work can be done with it. */
#include <string.h>

int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < 2 ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device ? "Second GPU" : "Imitated GPU", length); return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : device ? 9 : 6; return 0;
}
