// The calls of ONNX Runtime's C API that the Swift engine makes. The API is a table of function pointers, in which Swift would
// see optional closures; these have plain names. A status that is not NULL is an error, and the caller's to release.
#ifndef PFL_ONNXRUNTIME_SHIM_H
#define PFL_ONNXRUNTIME_SHIM_H

#include <onnxruntime/onnxruntime_c_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline const OrtApi *pfl_ort(void) { return OrtGetApiBase()->GetApi(ORT_API_VERSION); }

// Whether the library is as new as the headers.
static inline bool pfl_ort_available(void) { return pfl_ort() != NULL; }

static inline const char *pfl_ort_version(void) { return OrtGetApiBase()->GetVersionString(); }

static inline const char *pfl_ort_message(const OrtStatus *status) { return pfl_ort()->GetErrorMessage(status); }

static inline void pfl_ort_release_status(OrtStatus *status) { pfl_ort()->ReleaseStatus(status); }

static inline OrtStatus *pfl_ort_create_env(OrtEnv **env) {
    // What goes wrong is returned.
    return pfl_ort()->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "pfl-mobile", env);
}

// An arena of the process for sessions whose options are `frugal`. It begins with `begins` bytes of addresses, which take
// memory when they are first written to; a piece of it is divided when more than `rest` bytes would be left over.
static inline OrtStatus *pfl_ort_share_arena(OrtEnv *env, size_t begins, size_t rest) {
    const OrtApi *ort = pfl_ort();
    const char *const names[] = {"max_mem", "arena_extend_strategy", "initial_chunk_size_bytes",
                                 "max_dead_bytes_per_chunk"};
    const size_t values[] = {0, 0, begins, rest}; // as much as is needed; doubling
    OrtMemoryInfo *memory = NULL;
    OrtArenaCfg *how = NULL;
    OrtStatus *status = ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory);
    if (!status) status = ort->CreateArenaCfgV2(names, values, sizeof values / sizeof *values, &how);
    if (!status) status = ort->CreateAndRegisterAllocator(env, memory, how);
    if (how) ort->ReleaseArenaCfg(how);
    if (memory) ort->ReleaseMemoryInfo(memory);
    return status;
}

static inline OrtStatus *pfl_ort_unshare_arena(OrtEnv *env) {
    const OrtApi *ort = pfl_ort();
    OrtMemoryInfo *memory = NULL;
    OrtStatus *status = ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory);
    if (!status) status = ort->UnregisterAllocator(env, memory);
    if (memory) ort->ReleaseMemoryInfo(memory);
    return status;
}

// Programs that are `frugal` take their memory from the arena that pfl_ort_share_arena has made.
static inline OrtStatus *pfl_ort_create_options(int threads, int frugal, OrtSessionOptions **options) {
    const OrtApi *ort = pfl_ort();
    OrtStatus *status = ort->CreateSessionOptions(options);
    if (!status) status = ort->SetSessionLogSeverityLevel(*options, ORT_LOGGING_LEVEL_FATAL);
    // A thread that waits for work would keep a core busy.
    if (!status) status = ort->AddSessionConfigEntry(*options, "session.intra_op.allow_spinning", "0");
    if (!status) status = ort->SetIntraOpNumThreads(*options, threads);
    if (!status) status = ort->SetInterOpNumThreads(*options, 1);
    if (!status && frugal) status = ort->AddSessionConfigEntry(*options, "session.use_env_allocators", "1");
    if (!status && frugal) status = ort->DisableMemPattern(*options);
    return status;
}

static inline void pfl_ort_release_options(OrtSessionOptions *options) { pfl_ort()->ReleaseSessionOptions(options); }

static inline OrtStatus *pfl_ort_create_session(OrtEnv *env, const char *path, const OrtSessionOptions *options,
                                                OrtSession **session) {
    return pfl_ort()->CreateSession(env, path, options, session);
}

static inline void pfl_ort_release_session(OrtSession *session) { pfl_ort()->ReleaseSession(session); }

// A tensor over the caller's bytes, which must outlive it.
static inline OrtStatus *pfl_ort_create_tensor(void *data, size_t bytes, const int64_t *shape, size_t dimensions, int type,
                                               OrtValue **value) {
    const OrtApi *ort = pfl_ort();
    OrtMemoryInfo *memory = NULL;
    OrtStatus *status = ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory);
    if (status) return status;
    status = ort->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, dimensions, (ONNXTensorElementDataType)type,
                                                 value);
    ort->ReleaseMemoryInfo(memory);
    return status;
}

static inline void pfl_ort_release_value(OrtValue *value) { pfl_ort()->ReleaseValue(value); }

static inline OrtStatus *pfl_ort_run(OrtSession *session, const char *const *names, const OrtValue *const *inputs,
                                     size_t input_count, const char *const *output_names, size_t output_count,
                                     OrtValue **outputs) {
    return pfl_ort()->Run(session, NULL, names, inputs, input_count, output_names, output_count, outputs);
}

// Type and shape of a tensor; at most `most` lengths are written.
static inline OrtStatus *pfl_ort_describe(const OrtValue *value, int *type, size_t *dimensions, int64_t *shape,
                                          size_t most) {
    const OrtApi *ort = pfl_ort();
    OrtTensorTypeAndShapeInfo *info = NULL;
    ONNXTensorElementDataType found = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    OrtStatus *status = ort->GetTensorTypeAndShape(value, &info);
    if (status) return status;
    status = ort->GetTensorElementType(info, &found);
    if (!status) status = ort->GetDimensionsCount(info, dimensions);
    if (!status) status = ort->GetDimensions(info, shape, *dimensions < most ? *dimensions : most);
    *type = found;
    ort->ReleaseTensorTypeAndShapeInfo(info);
    return status;
}

static inline OrtStatus *pfl_ort_data(OrtValue *value, void **data) { return pfl_ort()->GetTensorMutableData(value, data); }

#endif
