vcpkg_download_distfile(ARCHIVE
    URLS "@URL@"
    FILENAME "nodedb-@VERSION@.tar.gz"
    SHA512 @SHA512@
)
vcpkg_extract_source_archive(SOURCE_PATH ARCHIVE "${ARCHIVE}")

# Headers only: there is nothing to build, and nothing that differs between debug and release.
set(VCPKG_BUILD_TYPE release)
set(environment "")
if(NOT "liburing" IN_LIST FEATURES)
    list(APPEND environment NODEDB_NO_LIBURING=1)
endif()
if(NOT "jemalloc" IN_LIST FEATURES)
    list(APPEND environment NODEDB_NO_JEMALLOC=1)
endif()
vcpkg_execute_required_process(
    COMMAND "${CMAKE_COMMAND}" -E env ${environment} sh "${SOURCE_PATH}/build.sh" install "${CURRENT_PACKAGES_DIR}"
    WORKING_DIRECTORY "${SOURCE_PATH}"
    LOGNAME "install-${TARGET_TRIPLET}"
)
vcpkg_fixup_pkgconfig()

file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
file(REMOVE "${CURRENT_PACKAGES_DIR}/share/${PORT}/LICENSE")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
