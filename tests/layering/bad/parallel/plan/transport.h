#include "runtime/comm/communicator.h"
