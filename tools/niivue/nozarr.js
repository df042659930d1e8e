// The page never reads Zarr; its codecs are WebAssembly of 1.3 MB.
const absent = () => {
  throw new Error("Zarr is not part of this build");
};
export const open = absent, root = absent, get = absent, slice = absent, FetchStore = absent;
export const withConsolidated = absent, tryWithConsolidated = absent, registry = new Map();
export default {};
