#include "version.h"

DEFINE_VERSION(this)
