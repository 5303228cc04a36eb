#include "parallel/attention.h"

#include <algorithm>

#include "interop/c/handles.h"
#include "launch/attention_options.h"

using namespace periplus;

struct periplus_attention {
  DistributedAttention operation;
  Device device;
  int rank;
};

namespace {

DistributedAttention make(const periplus_group& group, const periplus_attention_spec& spec, Device device) {
  const comm::Communicator& communicator = group.communicator;
  launch::OptionTable table("apply attention", "", "");
  launch::AttentionSettings settings;
  settings.add_to(table);
  interop::parse(table, spec.options, spec.option_count);
  AttentionProblem problem = settings.problem(table, interop::documents_of(spec.cu_seqlens, spec.documents), communicator.size());
  problem.q_heads = spec.q_heads, problem.kv_heads = spec.kv_heads;
  problem.head_size = spec.head_size, problem.value_size = spec.value_size;
  problem.dtype = interop::dtype_of(spec.dtype, "dtype");
  problem.sink = spec.sink != 0, problem.lse_gradient = spec.lse_gradient != 0;
  problem.contiguous_kv = false;
  launch::use_named_machine(settings.machine, problem, settings.how);
  return DistributedAttention(std::move(problem), settings.how, communicator, Memory(device), nullptr,
                              interop::stream_of(device, spec.stream));
}

}  // namespace

int periplus_attention_make(const periplus_group* group, const periplus_attention_spec* spec, periplus_attention** attention) {
  return interop::guarded({group, spec, attention}, [&] {
    const Device device = interop::device_of(spec->device, "device");
    *attention = new periplus_attention{make(*group, *spec, device), device, group->communicator.rank()};
  });
}

int64_t periplus_attention_rows(const periplus_attention* attention, int64_t* rows) {
  return interop::write_rows(attention->operation.problem().layout, attention->rank, rows);
}

int periplus_attention_forward(periplus_attention* attention, const periplus_tensor* q, const periplus_tensor* k, const periplus_tensor* v,
                               const periplus_tensor* sink, const periplus_tensor* out, const periplus_tensor* lse) {
  return interop::guarded({attention}, [&] {
    const auto view = [&](const periplus_tensor* tensor, const char* name) {
      return interop::heads_view_of(tensor, name, attention->device);
    };
    attention->operation.forward({view(q, "q"), view(k, "k"), view(v, "v"), view(sink, "sink")}, {view(out, "out"), view(lse, "lse")});
  });
}

int periplus_attention_backward(periplus_attention* attention, const periplus_tensor* q, const periplus_tensor* k, const periplus_tensor* v,
                                const periplus_tensor* sink, const periplus_tensor* out, const periplus_tensor* lse,
                                const periplus_tensor* dout, const periplus_tensor* dlse, const periplus_tensor* dq,
                                const periplus_tensor* dk, const periplus_tensor* dv, const periplus_tensor* dsink) {
  return interop::guarded({attention}, [&] {
    const auto view = [&](const periplus_tensor* tensor, const char* name) {
      return interop::heads_view_of(tensor, name, attention->device);
    };
    attention->operation.backward({view(q, "q"), view(k, "k"), view(v, "v"), view(sink, "sink")}, {view(out, "out"), view(lse, "lse")},
                                  {view(dout, "dout"), view(dlse, "dlse")},
                                  {view(dq, "dq"), view(dk, "dk"), view(dv, "dv"), view(dsink, "dsink")});
  });
}

void periplus_attention_free(periplus_attention* attention) { delete attention; }
