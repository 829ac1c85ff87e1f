#define FB_ISA 2
#define FB_DOUBLE 1
#define FB_TABLE fb_avx512_f64
#include "../core/table.h"
