/* An NVIDIA driver with one GPU of compute capability 8.6, as far as r2gen asks: no work can be done with it. */
#include <string.h>

int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    (void)device; strncpy(name, "Imitated GPU", length); return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device; *value = attribute == 75 ? 8 : 6; return 0;
}
