#include "band.h"
