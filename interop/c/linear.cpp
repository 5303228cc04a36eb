#include <memory>

#include "interop/c/handles.h"
#include "launch/linear_options.h"
#include "parallel/linear_attention.h"
#include "runtime/error.h"

using namespace periplus;

struct periplus_linear {
  DistributedLinearAttention operation;
  Memory memory;
  int rank;
};

struct periplus_states {
  LinearAttentionStates tensors;
};

namespace {

Decay decay_of(int32_t decay) {
  if (decay < PERIPLUS_NO_DECAY || decay > PERIPLUS_DIAGONAL_DECAY)
    throw InvalidArgument("decay: " + std::to_string(decay) + " is not 0 (none), 1 (scalar) or 2 (diagonal)");
  return static_cast<Decay>(decay);
}

LinearAttentionProblem problem_of(const periplus_linear_spec& spec, const launch::LinearSettings& settings, int ranks) {
  LinearAttentionProblem problem = settings.problem(interop::documents_of(spec.cu_seqlens, spec.documents), ranks);
  problem.heads = spec.heads, problem.head_size = spec.head_size, problem.value_size = spec.value_size;
  problem.dtype = interop::dtype_of(spec.dtype, "dtype");
  problem.decay = decay_of(spec.decay);
  problem.delta_rule = spec.delta_rule != 0;
  return problem;
}

}  // namespace

int periplus_linear_make(const periplus_group* group, const periplus_linear_spec* spec, periplus_linear** linear) {
  return interop::guarded({group, spec, linear}, [&] {
    const Device device = interop::device_of(spec->device, "device");
    launch::OptionTable table(spec->delta_rule != 0 ? "apply delta_rule" : "apply linear_attention", "", "");
    launch::LinearSettings settings;
    settings.add_to(table, spec->delta_rule != 0);
    interop::parse(table, spec->options, spec->option_count);
    const Memory memory(device);
    *linear = new periplus_linear{{problem_of(*spec, settings, group->communicator.size()), settings.how, group->communicator, memory,
                                   nullptr, interop::stream_of(device, spec->stream)},
                                  memory,
                                  group->communicator.rank()};
  });
}

int64_t periplus_linear_rows(const periplus_linear* linear, int64_t* rows) {
  return interop::write_rows(linear->operation.problem().layout, linear->rank, rows);
}

int periplus_linear_forward(periplus_linear* linear, const periplus_tensor* q, const periplus_tensor* k, const periplus_tensor* v,
                            const periplus_tensor* log_decay, const periplus_tensor* beta, const periplus_tensor* out,
                            periplus_states** states) {
  return interop::guarded({linear, states}, [&] {
    const auto view = [&](const periplus_tensor* tensor, const char* name) {
      return interop::heads_view_of(tensor, name, linear->memory.device());
    };
    auto kept = std::make_unique<periplus_states>(periplus_states{linear->operation.make_states(linear->memory)});
    linear->operation.forward({view(q, "q"), view(k, "k"), view(v, "v"), view(log_decay, "log_decay"), view(beta, "beta")},
                              kept->tensors.outputs(view(out, "out")));
    *states = kept.release();
  });
}

int periplus_linear_backward(periplus_linear* linear, const periplus_states* states, const periplus_tensor* q, const periplus_tensor* k,
                             const periplus_tensor* v, const periplus_tensor* log_decay, const periplus_tensor* beta,
                             const periplus_tensor* out, const periplus_tensor* dout, const periplus_tensor* dq, const periplus_tensor* dk,
                             const periplus_tensor* dv, const periplus_tensor* dlog_decay, const periplus_tensor* dbeta) {
  return interop::guarded({linear, states}, [&] {
    const auto view = [&](const periplus_tensor* tensor, const char* name) {
      return interop::heads_view_of(tensor, name, linear->memory.device());
    };
    linear->operation.backward({view(q, "q"), view(k, "k"), view(v, "v"), view(log_decay, "log_decay"), view(beta, "beta")},
                               states->tensors.outputs(view(out, "out")), view(dout, "dout"),
                               {view(dq, "dq"), view(dk, "dk"), view(dv, "dv"), view(dlog_decay, "dlog_decay"), view(dbeta, "dbeta")});
  });
}

void periplus_states_free(periplus_states* states) { delete states; }
void periplus_linear_free(periplus_linear* linear) { delete linear; }
