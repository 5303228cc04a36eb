#include <utility>
#include <vector>

#include "interop/c/handles.h"
#include "kernels/operands.h"
#include "parallel/short_convolution.h"
#include "runtime/device_tensor.h"

using namespace periplus;

struct periplus_convolution {
  DistributedConvolution operation;
  Device device;
  Stream stream;
  int rank;
  TensorView view(const periplus_tensor* tensor, const char* name) const { return interop::view_of(tensor, name, device); }
};

namespace {

ConvolutionProblem problem_of(const periplus_convolution_spec& spec, int ranks) {
  interop::require_given({spec.layout});
  const std::vector<std::int64_t> documents = interop::documents_of(spec.cu_seqlens, spec.documents);
  return {SequenceLayout::make(layout_kind_from_string(spec.layout), ranks, documents), spec.channels, spec.width,
          interop::dtype_of(spec.dtype, "dtype")};
}

}  // namespace

int periplus_convolution_make(const periplus_group* group, const periplus_convolution_spec* spec, periplus_convolution** convolution) {
  return interop::guarded({group, spec, convolution}, [&] {
    const comm::Communicator& communicator = group->communicator;
    const Device device = interop::device_of(spec->device, "device");
    ConvolutionProblem problem = problem_of(*spec, communicator.size());
    comm::require_same_on_all_ranks(communicator, problem.digest(), "short convolution: the problem", Stream());
    *convolution = new periplus_convolution{DistributedConvolution(std::move(problem), communicator, Memory(device)), device,
                                            interop::stream_of(device, spec->stream), communicator.rank()};
  });
}

int64_t periplus_convolution_rows(const periplus_convolution* convolution, int64_t* rows) {
  return interop::write_rows(convolution->operation.problem().layout, convolution->rank, rows);
}

int64_t periplus_convolution_units(const periplus_convolution* convolution) { return convolution->operation.units(); }

int periplus_convolution_forward(periplus_convolution* convolution, const periplus_tensor* x, const periplus_tensor* weight,
                                 const periplus_tensor* halo, const periplus_tensor* y) {
  return interop::guarded({convolution, x, weight, halo, y}, [&] {
    periplus_convolution& c = *convolution;
    c.operation.forward(c.view(x, "x"), c.view(weight, "weight"), c.view(halo, "halo"), c.view(y, "y"), c.stream);
  });
}

int periplus_convolution_backward(periplus_convolution* convolution, const periplus_tensor* x, const periplus_tensor* weight,
                                  const periplus_tensor* halo, const periplus_tensor* dy, const periplus_tensor* dx,
                                  const periplus_tensor* dweight) {
  return interop::guarded({convolution, x, weight, halo, dy, dx, dweight}, [&] {
    periplus_convolution& c = *convolution;
    const TensorView taps = c.view(weight, "weight"), sums = c.view(dweight, "dweight");
    kernels::check_dense("short convolution", "dweight", sums, taps.shape(), accumulator_of(c.operation.problem().dtype));
    fill_zero(sums, c.stream);
    c.operation.backward(c.view(x, "x"), taps, c.view(halo, "halo"), c.view(dy, "dy"), c.view(dx, "dx"), sums, c.stream);
  });
}

void periplus_convolution_free(periplus_convolution* convolution) { delete convolution; }
