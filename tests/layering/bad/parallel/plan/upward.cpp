#include "parallel/strategy/ring.h"
