#define FB_ISA 2
#define FB_DOUBLE 1
#include "../core/table.h"
