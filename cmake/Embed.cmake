# embed_presets(LAYER FOLDER): the JSON files of FOLDER as text inside of the layer's library, by stem: tandem::preset_files().
function(embed_presets layer folder)
  file(GLOB files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.json)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${files})
  set(rows)
  foreach(file ${files})
    get_filename_component(stem ${file} NAME_WLE)
    file(READ ${file} text)
    string(APPEND rows "    {\"${stem}\", R\"json(${text})json\"},\n")
  endforeach()
  set(source ${CMAKE_BINARY_DIR}/generated/${folder}.cc)
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT "#include \"runtime/model/models/presets.h\"\n
namespace tandem {\nnamespace {\nconstexpr PresetFile kFiles[] = {\n@rows@};\n}  // namespace\n
std::span<const PresetFile> preset_files() { return kFiles; }\n}  // namespace tandem\n")
  string(REPLACE "/" "_" name ${layer})
  target_sources(${name} PRIVATE ${source})
endfunction()
