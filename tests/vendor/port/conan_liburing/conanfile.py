# A stand-in for the package liburing: the system's.
from conan import ConanFile


class Liburing(ConanFile):
    name = "liburing"
    version = "2.3"
    settings = "os"

    def package_info(self):
        self.cpp_info.includedirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.bindirs = []
        self.cpp_info.system_libs = ["uring"]
