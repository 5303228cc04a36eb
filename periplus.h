#pragma once

/// Umbrella header: everything an embedding program needs. Include the single headers where build time matters.

#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/choose.h"
#include "parallel/layout.h"
#include "parallel/linear_attention.h"
#include "parallel/mask.h"
#include "parallel/plan/print.h"
#include "parallel/plan/verify.h"
#include "parallel/simulate/simulate.h"
#include "parallel/train/checkpoint/checkpoint.h"
#include "parallel/train/data/batch.h"
#include "parallel/train/engine.h"
#include "parallel/train/trainer.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/mpi_transport.h"
#include "runtime/comm/tcp_transport.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"
#include "runtime/safetensors.h"
#include "runtime/tensor.h"
