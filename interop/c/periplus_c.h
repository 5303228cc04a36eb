/* Periplus from any language: groups of ranks, distributed softmax attention, linear attention, the delta rule and short convolutions.
 *
 * Every function that can fail returns a status; periplus_error() then tells why. Operations are collective: all ranks of their group make
 * the same ones and call them in the same order. A handle is used by one thread at a time. NULL is for what a comment says may be NULL, and
 * for the functions that free. */
#ifndef PERIPLUS_C_H
#define PERIPLUS_C_H

#include <stdint.h>

#define PERIPLUS_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* As the exit codes of the command. */
enum periplus_status { PERIPLUS_OK = 0, PERIPLUS_BAD_INPUT = 2, PERIPLUS_FAILURE = 3 };

/* One sentence about the last call of this thread that failed; valid until the next one that fails. */
PERIPLUS_API const char* periplus_error(void);
PERIPLUS_API const char* periplus_version(void);
/* Of the library that was loaded; another one has other structures or functions. */
#define PERIPLUS_ABI 2
PERIPLUS_API int periplus_abi(void);

/* A tensor as DLPack describes it: the address of a DLTensor may be given. strides count elements; NULL: dense, row-major. */
typedef struct {
  int32_t device_type; /* 1: host, 2: CUDA */
  int32_t device_id;
} periplus_device;
typedef struct {
  uint8_t code; /* 2: float, 4: bfloat */
  uint8_t bits;
  uint16_t lanes; /* 1 */
} periplus_dtype;
typedef struct {
  void* data;
  periplus_device device;
  int32_t ndim;
  periplus_dtype dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} periplus_tensor;

/* ---- Groups of ranks ---- */

typedef struct periplus_group periplus_group;

/* Ranks that are threads of this process; groups[r] is for the thread that plays rank r. */
PERIPLUS_API int periplus_group_threads(int ranks, double deadline_seconds, periplus_group** groups);
/* Ranks of an MPI communicator, given as its Fortran handle (MPI_Comm_c2f); MPI has at least MPI_THREAD_FUNNELED. Collective. */
PERIPLUS_API int periplus_group_mpi(int fortran_handle, double deadline_seconds, periplus_group** group);
/* Processes that meet at rank 0, which others reach as `host`, and are joined by TCP. Rank 0 listens at a free port: share_port is called
 * once on every rank, with that port on rank 0 and 0 elsewhere, and returns rank 0's port on all of them, or 0 if it could not. A rank that
 * waits long for others says on stderr for whom. Collective. */
typedef uint16_t (*periplus_share_port)(uint16_t own, void* user);
PERIPLUS_API int periplus_group_tcp(int rank, int ranks, const char* host, periplus_share_port share_port, void* user,
                                    double deadline_seconds, periplus_group** group);
/* The same ranks with a GPU each, joined by NCCL. Collective. */
PERIPLUS_API int periplus_group_gpu(const periplus_group* processes, int device, double deadline_seconds, periplus_group** group);

PERIPLUS_API int periplus_group_rank(const periplus_group* group);
PERIPLUS_API int periplus_group_size(const periplus_group* group);
/* Lets all that wait for this rank fail with `reason`, where the transport can tell them. For a rank that fails elsewhere. */
PERIPLUS_API void periplus_group_abort(const periplus_group* group, const char* reason);
PERIPLUS_API void periplus_group_free(periplus_group* group);

/* Gives kernels that the calling thread runs an equal share of the process's cores. For ranks that are threads. */
PERIPLUS_API void periplus_share_cores(int sharers);

/* ---- Softmax attention ---- */

typedef struct {
  const int64_t* cu_seqlens; /* [documents + 1]: borders of the packed sequence, from 0 to all tokens */
  int64_t documents;
  int32_t q_heads, kv_heads, head_size, value_size;
  periplus_dtype dtype;   /* of q, k, v, out */
  periplus_device device; /* where tensors are */
  void* stream;           /* cudaStream_t; NULL: the default one */
  int32_t sink;           /* not 0: a logit per head takes part in every softmax */
  int32_t lse_gradient;   /* not 0: the loss also depends on lse */
  const char** options;   /* [option_count]: how, as flags of `periplus apply attention`: "--strategy", "ring", "--layout", "zigzag" */
  int64_t option_count;
} periplus_attention_spec;

typedef struct periplus_attention periplus_attention;

/* Plans once; compares what it was given with all ranks. Collective. */
PERIPLUS_API int periplus_attention_make(const periplus_group* group, const periplus_attention_spec* spec, periplus_attention** attention);
/* How many rows of the packed sequence are this rank's; writes which, unless rows is NULL. */
PERIPLUS_API int64_t periplus_attention_rows(const periplus_attention* attention, int64_t* rows);
/* q [rows, q_heads, head_size], k [rows, kv_heads, head_size], v [rows, kv_heads, value_size], sink [q_heads] or NULL;
 * out [rows, q_heads, value_size], lse [rows, q_heads]: natural log. lse and sink are f32, or f64 for f64. q, k, v may be strided before
 * their last dimension. On the host results are there on return; on a GPU in the order of the stream. Collective. */
PERIPLUS_API int periplus_attention_forward(periplus_attention* attention, const periplus_tensor* q, const periplus_tensor* k,
                                            const periplus_tensor* v, const periplus_tensor* sink, const periplus_tensor* out,
                                            const periplus_tensor* lse);
/* dlse is NULL without lse_gradient, sink and dsink without sink; dsink is this rank's part of a sum over ranks. Results are dense.
 * Collective. */
PERIPLUS_API int periplus_attention_backward(periplus_attention* attention, const periplus_tensor* q, const periplus_tensor* k,
                                             const periplus_tensor* v, const periplus_tensor* sink, const periplus_tensor* out,
                                             const periplus_tensor* lse, const periplus_tensor* dout, const periplus_tensor* dlse,
                                             const periplus_tensor* dq, const periplus_tensor* dk, const periplus_tensor* dv,
                                             const periplus_tensor* dsink);
PERIPLUS_API void periplus_attention_free(periplus_attention* attention);

/* ---- Linear attention and the delta rule ---- */

enum periplus_decay { PERIPLUS_NO_DECAY = 0, PERIPLUS_SCALAR_DECAY = 1, PERIPLUS_DIAGONAL_DECAY = 2 };

typedef struct {
  const int64_t* cu_seqlens;
  int64_t documents;
  int32_t heads, head_size, value_size;
  periplus_dtype dtype;
  periplus_device device;
  void* stream;
  int32_t decay;        /* enum periplus_decay */
  int32_t delta_rule;   /* not 0: beta is given */
  const char** options; /* [option_count]: as flags of `periplus apply linear_attention` or `delta_rule` */
  int64_t option_count;
} periplus_linear_spec;

typedef struct periplus_linear periplus_linear;
/* States that a forward pass leaves for its backward pass. */
typedef struct periplus_states periplus_states;

PERIPLUS_API int periplus_linear_make(const periplus_group* group, const periplus_linear_spec* spec, periplus_linear** linear);
PERIPLUS_API int64_t periplus_linear_rows(const periplus_linear* linear, int64_t* rows);
/* q, k [rows, heads, head_size], v and out [rows, heads, value_size]; q, k, v may be strided before their last dimension, also by 0, as
 * where all heads have the same keys; log_decay [rows, heads] (scalar) or [rows, heads, head_size] (diagonal), natural log, at most 0;
 * beta [rows, heads]; these two f32, or f64 for f64, and NULL where there are none. Collective. */
PERIPLUS_API int periplus_linear_forward(periplus_linear* linear, const periplus_tensor* q, const periplus_tensor* k,
                                         const periplus_tensor* v, const periplus_tensor* log_decay, const periplus_tensor* beta,
                                         const periplus_tensor* out, periplus_states** states);
PERIPLUS_API int periplus_linear_backward(periplus_linear* linear, const periplus_states* states, const periplus_tensor* q,
                                          const periplus_tensor* k, const periplus_tensor* v, const periplus_tensor* log_decay,
                                          const periplus_tensor* beta, const periplus_tensor* out, const periplus_tensor* dout,
                                          const periplus_tensor* dq, const periplus_tensor* dk, const periplus_tensor* dv,
                                          const periplus_tensor* dlog_decay, const periplus_tensor* dbeta);
PERIPLUS_API void periplus_states_free(periplus_states* states);
PERIPLUS_API void periplus_linear_free(periplus_linear* linear);

/* ---- Short causal convolutions ---- */

typedef struct {
  const int64_t* cu_seqlens;
  int64_t documents;
  int32_t channels;
  int32_t width; /* tokens that one result depends on, its own included */
  periplus_dtype dtype;
  periplus_device device;
  void* stream;
  const char* layout; /* "zigzag", "contiguous", ...: of the attention or linear attention beside it */
} periplus_convolution_spec;

typedef struct periplus_convolution periplus_convolution;

PERIPLUS_API int periplus_convolution_make(const periplus_group* group, const periplus_convolution_spec* spec,
                                           periplus_convolution** convolution);
PERIPLUS_API int64_t periplus_convolution_rows(const periplus_convolution* convolution, int64_t* rows);
/* Runs of neighbouring tokens that this rank has; each needs the width - 1 tokens before it. */
PERIPLUS_API int64_t periplus_convolution_units(const periplus_convolution* convolution);
/* x and y [rows, channels], weight [channels, width] or, with a bias as last column, [channels, width + 1]: y[n, c] = silu(bias[c] + the
 * sum over w of weight[c, w] x[n - (width - 1) + w, c]), within documents. halo [units, width - 1, channels] is filled, for backward. All
 * are dense and of dtype: f64, f32 or bf16. Collective. */
PERIPLUS_API int periplus_convolution_forward(periplus_convolution* convolution, const periplus_tensor* x, const periplus_tensor* weight,
                                              const periplus_tensor* halo, const periplus_tensor* y);
/* dweight, f32 or f64 for f64, is this rank's part of a sum over ranks. Collective. */
PERIPLUS_API int periplus_convolution_backward(periplus_convolution* convolution, const periplus_tensor* x, const periplus_tensor* weight,
                                               const periplus_tensor* halo, const periplus_tensor* dy, const periplus_tensor* dx,
                                               const periplus_tensor* dweight);
PERIPLUS_API void periplus_convolution_free(periplus_convolution* convolution);

#ifdef __cplusplus
}
#endif

#endif /* PERIPLUS_C_H */
