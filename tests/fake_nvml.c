/* A stand-in for the driver's libnvidia-ml.so.1: two GPUs that do what the file named by $FAKE_NVML says, read anew at each call.

   Its first line is what nvmlInit returns. Then a line for each GPU, in NVML's order:
     uuid  temperature(C)  reasons(bits)  error  error_of_the_rest
   error: what the temperature's call returns; error_of_the_rest: what the others do. Without the file no driver is loaded.
   -DOLD_DRIVER leaves out the calls that old drivers lack. $FAKE_NVML.log takes a letter for each init (i) and shutdown (s). */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

typedef struct { char uuid[64]; unsigned temperature; unsigned long long reasons; int error, rest; } Gpu;
typedef struct { unsigned version; int sensor, temperature; } Temperature;

static int users;  /* inits less shutdowns, as the real library counts them */
static int lost;   /* a GPU that was lost stays so until the library is shut down and begun anew */

static int look(int *init, Gpu gpus[2]) {
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    int count = 0;
    if (!file) return -1;
    if (fscanf(file, "%d", init) == 1)
        while (count < 2 && fscanf(file, "%63s %u %llu %d %d", gpus[count].uuid, &gpus[count].temperature,
                                   &gpus[count].reasons, &gpus[count].error, &gpus[count].rest) == 5)
            count++;
    fclose(file);
    return count;
}

static void note(char letter) {
    char path[4096];
    snprintf(path, sizeof path, "%s.log", getenv("FAKE_NVML"));
    FILE *file = fopen(path, "a");
    fputc(letter, file);
    fclose(file);
}

/* A handle is the GPU's place in the list, counted from 1. */
static int gpu_of(void *handle, Gpu *gpu) {
    Gpu gpus[2];
    int init, count = look(&init, gpus), place = (int)(size_t)handle - 1;
    if (!users) return UNINITIALIZED;
    if (place >= count || gpus[place].error == GPU_IS_LOST) lost = 1;
    if (lost) return GPU_IS_LOST;
    *gpu = gpus[place];
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    Gpu gpus[2];
    int init;
    (void)flags;
    if (look(&init, gpus) < 0) return DRIVER_NOT_LOADED;
    if (init == OK) {
        if (!users++) lost = 0;
        note('i');
    }
    return init;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    note('s');
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    Gpu gpus[2];
    int init, count = look(&init, gpus);
    if (!users) return UNINITIALIZED;
    for (int i = 0; i < count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) return *handle = (void *)(size_t)(i + 1), OK;
    return NOT_FOUND;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    Gpu gpu;
    int result = gpu_of(handle, &gpu);
    (void)sensor;
    if (result == OK && (result = gpu.error) == OK) *celsius = gpu.temperature;
    return result;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    Gpu gpu;
    int result = gpu_of(handle, &gpu);
    if (result == OK && (result = gpu.rest) == OK) *reasons = gpu.reasons;
    return result;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetTemperatureV(void *handle, Temperature *asked) {
    unsigned celsius;
    int result = nvmlDeviceGetTemperature(handle, asked->sensor, &celsius);
    if (result == OK) asked->temperature = (int)celsius;
    return result;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(handle, reasons);
}
#endif
