# Devices of the emulator, beyond what the boards need by themselves.
# Becomes configs/devices/x86_64-softmmu/dolmen.mak in QEMU's source.
CONFIG_Q35=y
CONFIG_I440FX=y
CONFIG_AMD_IOMMU=y
CONFIG_VTD=y
CONFIG_PCIE_PORT=y
# the TPM, with its backend: "default y" does not count without default devices
CONFIG_TPM_TIS_ISA=y
CONFIG_TPM_CRB=y
CONFIG_TPM_EMULATOR=y
# bus masters to guard against
CONFIG_DOLMEN_DMA=y
CONFIG_EDU=y
CONFIG_E1000E_PCI_EXPRESS=y
CONFIG_NVME_PCI=y
CONFIG_FDC_ISA=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_RNG=y
CONFIG_VIRTIO_SERIAL=y
# a clear end for test images
CONFIG_ISA_DEBUG=y
CONFIG_PCI_TESTDEV=y
