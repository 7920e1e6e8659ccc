/* A CUDA driver without a GPU. It says of itself what an H100 says, keeps no memory and runs nothing: it records every launch with
 * its arguments, as the cubin lays them out, and refuses what a driver refuses: grids, blocks, shared memory, tensor maps.
 * Only what Triton's launcher calls is here. ../stub/__init__.py builds and reads it. */
#include "cuda.h"
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHARED_BY_DEFAULT = 49152, SHARED_OPTIN = 232448, MOST_PARAMETERS = 128 };

/* What has happened since the last stub_forget(), one line each: "launch ..." and "refused ...". */
static char *journal;
static size_t journal_length, journal_size;

const char *stub_journal(void) { return journal ? journal : ""; }

void stub_forget(void) {
  journal_length = 0;
  if (journal)
    journal[0] = 0;
}

/* Writing a launch down takes longer than launching: whoever times launches has it left out. */
static int recording = 1;

void stub_record(int on) { recording = on; }

static void note(const char *format, ...) {
  va_list arguments;
  if (journal_size < journal_length + 4096)
    journal = realloc(journal, journal_size = 2 * journal_size + 8192);
  va_start(arguments, format);
  journal_length += vsnprintf(journal + journal_length, 4096, format, arguments);
  va_end(arguments);
}

static char last_error[512] = "the stub driver refused";

static CUresult refuse(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  note("refused %s\n", last_error);
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  (void)error;
  *text = last_error;
  return CUDA_SUCCESS;
}

/* ---- one device ---- */

CUresult cuInit(unsigned flags) { return (void)flags, CUDA_SUCCESS; }
/* So old that CUDA's runtime, which is inside torch, takes the machine for one without a GPU. */
CUresult cuDriverGetVersion(int *version) { return *version = 10000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = SHARED_BY_DEFAULT; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = SHARED_OPTIN; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 52428800; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
  default: return refuse("attribute %d of the device is not known to the stub", attribute);
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return (void)context, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return (void)limit, *value = 1 << 20, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return (void)limit, (void)value, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  (void)device;
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  (void)attribute;
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}

/* ---- functions ---- */

struct function {
  char name[256];
  int most_dynamic_shared;
  int parameters;
  unsigned size[MOST_PARAMETERS];
};

CUresult cuModuleLoadData(CUmodule *module, const void *image) { return *module = (CUmodule)image, CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule module) { return (void)module, CUDA_SUCCESS; }

/* Sizes of a kernel's parameters, from the attributes in section .nv.info.<kernel>: format, attribute, and a value of two bytes
 * or, of format 4, the size of what follows. 0x17 describes one parameter: its index, its ordinal and offset, its size << 18. */
static int read_parameters(const unsigned char *image, struct function *f) {
  const Elf64_Ehdr *elf = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + elf->e_shoff);
  const char *names = (const char *)(image + sections[elf->e_shstrndx].sh_offset);
  char wanted[300];
  snprintf(wanted, sizeof wanted, ".nv.info.%s", f->name);
  for (int s = 0; s < elf->e_shnum; s++) {
    if (strcmp(names + sections[s].sh_name, wanted))
      continue;
    const unsigned char *at = image + sections[s].sh_offset, *end = at + sections[s].sh_size;
    while (at + 4 <= end) {
      uint16_t value;
      memcpy(&value, at + 2, 2);
      if (at[0] == 4 && at[1] == 0x17) {
        uint16_t ordinal;
        uint32_t flags;
        memcpy(&ordinal, at + 8, 2);
        memcpy(&flags, at + 12, 4);
        if (ordinal >= MOST_PARAMETERS)
          return 0;
        f->size[ordinal] = flags >> 18;
        f->parameters = ordinal >= f->parameters ? ordinal + 1 : f->parameters;
      }
      at += 4 + (at[0] == 4 ? value : 0);
    }
    return f->parameters > 0;
  }
  return 0;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  struct function *f = calloc(1, sizeof *f);
  snprintf(f->name, sizeof f->name, "%s", name);
  f->most_dynamic_shared = SHARED_BY_DEFAULT;
  if (!read_parameters((const unsigned char *)module, f))
    return refuse("%s: the cubin describes no parameters of such a kernel", name);
  *function = (CUfunction)f;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  (void)function;
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) {
  return (void)function, (void)config, CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  struct function *f = (struct function *)function;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    return CUDA_ERROR_INVALID_VALUE; /* what newer drivers have; Triton asks, and does without */
  if (value > SHARED_OPTIN)
    return refuse("%s: %d bytes of dynamic shared memory, at most %d", f->name, value, SHARED_OPTIN);
  f->most_dynamic_shared = value;
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  (void)function, (void)config;
  *clusters = 132;
  return CUDA_SUCCESS;
}

/* ---- launches and tensor maps ---- */

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **parameters, void **extra) {
  struct function *f = (struct function *)function;
  unsigned threads = c->blockDimX * c->blockDimY * c->blockDimZ, cluster = 1;
  int early = 0;
  (void)extra;
  for (unsigned i = 0; i < c->numAttrs; i++) {
    if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
      early = c->attrs[i].value.programmaticStreamSerializationAllowed;
    if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
      cluster = c->attrs[i].value.clusterDim.x;
  }
  if (!c->gridDimX || c->gridDimX > 2147483647u || !c->gridDimY || c->gridDimY > 65535 || !c->gridDimZ || c->gridDimZ > 65535)
    return refuse("%s: a grid of %u x %u x %u", f->name, c->gridDimX, c->gridDimY, c->gridDimZ);
  if (!threads || threads > 1024)
    return refuse("%s: blocks of %u threads", f->name, threads);
  if (c->sharedMemBytes > (unsigned)f->most_dynamic_shared)
    return refuse("%s: %u bytes of dynamic shared memory, allowed %d", f->name, c->sharedMemBytes, f->most_dynamic_shared);
  if (!recording)
    return CUDA_SUCCESS;
  note("launch %s %u %u %u %u %u %d %u", f->name, c->gridDimX, c->gridDimY, c->gridDimZ, threads, c->sharedMemBytes, early,
       cluster);
  for (int p = 0; p < f->parameters; p++) {
    note(" ");
    for (unsigned b = 0; b < f->size[p]; b++)
      note("%02x", ((unsigned char *)parameters[p])[b]);
  }
  note("\n");
  return CUDA_SUCCESS;
}

/* How the stub writes a tensor map, so that a launch records it whole. Triton clears bit 21 of its second word, where the
 * driver is older than 13.2 and the tensor small: that bit means nothing here. */
struct tensor_map {
  uint64_t address;
  uint8_t type, rank, fill, interleave, swizzle, promotion, unused[2];
  uint64_t dims[5], strides[4];
  uint32_t box[5];
};
_Static_assert(sizeof(struct tensor_map) <= sizeof(CUtensorMap), "a tensor map has 128 bytes");

/* The rules of cuTensorMapEncodeTiled in CUDA's driver API reference, for the types and the interleave that Triton asks for. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const unsigned bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}; /* of an element, by type */
  struct tensor_map m = {.address = (uint64_t)address, .type = type, .rank = rank, .interleave = interleave,
                         .swizzle = swizzle, .promotion = promotion, .fill = fill};
  if (type >= sizeof bytes / sizeof *bytes || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE)
    return refuse("tensor map: type %d, interleave %d", type, interleave);
  if (rank < 1 || rank > 5)
    return refuse("tensor map: rank %u, allowed are 1 to 5", rank);
  if (m.address % 16)
    return refuse("tensor map: address %p is no multiple of 16", address);
  for (unsigned i = 0; i < rank; i++) {
    if (!dims[i] || dims[i] > 1ull << 32)
      return refuse("tensor map: dimension %u has %llu elements", i, (unsigned long long)dims[i]);
    if (!box[i] || box[i] > 256)
      return refuse("tensor map: a box of %u elements in dimension %u, allowed are 1 to 256", box[i], i);
    if (element_strides[i] < 1 || element_strides[i] > 8)
      return refuse("tensor map: an element stride of %u", element_strides[i]);
    m.dims[i] = dims[i];
    m.box[i] = box[i];
  }
  for (unsigned i = 0; i + 1 < rank; i++) {
    if (!strides[i] || strides[i] % 16 || strides[i] >= 1ull << 40)
      return refuse("tensor map: a stride of %llu bytes, wanted multiples of 16", (unsigned long long)strides[i]);
    m.strides[i] = strides[i];
  }
  unsigned row = box[0] * bytes[type];
  unsigned widest = swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 128 : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64 : 32;
  if (row % 16 || (swizzle != CU_TENSOR_MAP_SWIZZLE_NONE && row > widest))
    return refuse("tensor map: rows of %u bytes in a box with swizzle %d", row, swizzle);
  memset(map, 0, sizeof *map);
  memcpy(map, &m, sizeof m);
  return CUDA_SUCCESS;
}
