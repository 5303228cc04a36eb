#include "../runtime/error.h"
