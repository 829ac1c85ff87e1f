#define FB_ISA 1
#define FB_DOUBLE 1
#define FB_TABLE fb_avx2_f64
#include "../core/table.h"
