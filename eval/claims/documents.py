"""All claims of the four documents, in their order. Figures are theirs, to the digits that they print."""

from eval.claims.claim import Claim

__all__ = ["CLAIMS"]

NONE = "no figure"
_CIFAR = "cifar10, weights"
_STAND_INS = "sets/set14, polyu"
_NO_WEIGHTS = "the weights of the trained networks that it compares with are not at hand"

_COURSE_REPORT = (
    Claim("S0-1", "Along the fit, reconstructions of attacked images are classified right early on.", NONE, _CIFAR),
    Claim("S0-2", "A fit first learns what a perturbation hardly touches, and later what it moves.", NONE, _CIFAR),
    Claim("S0-3", "FGSM, x + eps sign(grad L), is an attack that the defence is for.", NONE, _CIFAR),
    Claim("S0-4", "PGD is FGSM repeated with step alpha and clipped to the eps ball.", NONE, _CIFAR),
    Claim("S0-5", "Momentum keeps the direction of PGD steadier and leaves local maxima.", NONE, _CIFAR),
    Claim(
        "S0-6",
        "BIM, L-BFGS, DeepFool and C&W are further attacks (cited, not used).",
        NONE,
        _CIFAR,
    ),
    Claim("S0-7", "Model 1 is an autoencoder without skips, Model 2 a U-Net with skips.", "widths and depth are lost"),
    Claim("S0-8", "Model 1 denoises the snail.", "29.58 -> 30.640 (+1.06), SSIM .8029", "dip/denoising/snail.jpg"),
    Claim("S0-9", "Model 2 denoises the snail.", "29.59379 -> 30.45 (+0.86), SSIM .8031", "dip/denoising/snail.jpg"),
    Claim("S0-10", "Model 1 beats Model 2, which overfits; tuned, Model 2 would win.", "0.19 dB", "dip, sets/set14"),
    Claim(
        "S0-11",
        "Model 1 denoises five photographs.",
        "28.8043 -> 30.20316; 28.8626 -> 29.9506; 28.9565 -> 30.4107; 29.009 -> 29.5198; 28.8742 -> 29.9762; "
        "mean gain +1.11 (our sum)",
        _STAND_INS,
    ),
    Claim(
        "S0-12",
        "Model 2 denoises the same five photographs.",
        "28.7973 -> 29.8169; 28.8711 -> 29.8796; 28.9533 -> 29.6172; 29.0233 -> 29.6351; 28.8308 -> 29.3318; "
        "mean gain +0.76 (our sum)",
        _STAND_INS,
    ),
    Claim("S0-13", "One more encoder-decoder level on Model 1 is a clear gain.", "30.35 (Model 1: 30.640)", "dip"),
    Claim("S0-14", "The cosine loss makes Model 2 worse.", "29.55 for 30.45 (input 29.594)", "dip"),
    Claim("S0-15", "Half of the steps make Model 2 worse: it has not converged.", "29.5 for 30.45", "dip"),
    Claim("S0-16", "Both models denoise MNIST with Gaussian noise of sigma .25.", NONE, "mnist"),
    Claim("S0-17", "One mixed set holds MNIST, phone photographs and Set14.", NONE, "mnist, sets/set14, polyu"),
    Claim(
        "S0-18",
        "A Gaussian filter blurs where noise is strong and fails on salt and pepper; a median leaves noise where its "
        "window is small and blurs where it is large.",
        NONE,
        "sets/set14",
    ),
    Claim("S0-19", "Stopped in time, a fit is the image without noise; run on, it is the noisy image.", NONE, "dip"),
    Claim("S0-20", "The prior is ahead of other untrained methods.", NONE, "sets/set9"),
    Claim("S0-21", "One fit an image is slow.", "1.6 of 15.0 GB on a GPU, .9 of 12.7 GB of memory", "dip"),
    Claim(
        "S0-22", "The prior also serves super-resolution, inpainting, pre-images and flash photographs.", NONE, "dip"
    ),
    Claim("S0-23", "A hybrid of both models may be better than either (future work).", NONE, "sets/set14"),
    Claim("S0-24", "PSNR = 10 log10(MAX^2 / MSE); SSIM is the product of three terms, in [-1, 1].", "definitions"),
)

_SLIDES = (
    Claim("S1-1", "The final output of a denoising fit, against the truth.", "26.633632738881374 / .8262966", "dip"),
    Claim("S1-2", "Averaging is worth 3.29 dB and .036.", "29.922273164622798 / .8624169", "dip"),
    Claim(
        "S1-3",
        "Output and average against the noisy image.",
        "17.159526820560004 / .175373; 17.42376855052601 / .16904747",
        "dip",
    ),
    Claim("S1-4", "Curves of output and average, against truth and noisy image, by iteration.", "curves lost", "dip"),
    Claim("S1-5", "Text over a picture is filled in.", "SSIM .96201557", "dip/inpainting"),
    Claim("S1-6", "A picture is reconstructed from a part of its pixels.", "SSIM .939079", "dip/restoration"),
    Claim("S1-7", "Holes: a meshgrid gives coherence, and skip connections would leave artefacts.", NONE, "sets/set14"),
    Claim("S1-8", "Bilinear suits denoising and reconstruction, nearest inpainting and holes.", NONE, "sets/set14"),
    Claim("S1-9", "Skip connections keep detail that the encoder loses.", NONE, "sets/set14"),
    Claim("S1-10", "Reflection padding leaves fewer artefacts at the border.", NONE, "sets/set14"),
    Claim("S1-11", "Noise on z prevents overfitting.", NONE, "dip"),
    Claim("S1-12", "A checkpoint by PSNR keeps the best model.", NONE, "dip"),
    Claim("S1-13", "The masked loss never sees unknown pixels.", NONE, "dip/inpainting"),
    Claim("S1-14", "Structure is learned fast and noise slowly, yet noise can be fitted.", NONE, "sets/set5"),
    Claim("S1-15", "Depth sets how complex the patterns can get.", NONE, "sets/set14"),
    Claim(
        "S1-16",
        "PSNR above 30 is good, SSIM above .95 excellent.",
        "their own 29.92 / .862 and .939 miss it",
        barred="a yardstick and no measurement; the figures of S1-2, S1-5 and S1-6 may be held against it",
    ),
    Claim("S1-17", "The method needs no data, is slow, and overfits.", NONE, "dip"),
)

_LAB_REPORT = (
    Claim("S2-1", "Image and image + noise are learned sooner than shuffled pixels and noise.", NONE, "sets/set5"),
    Claim("S2-2", "The denoising network has 2,217,831 parameters.", "2217831"),
    Claim(
        "S2-3",
        "Blind denoising of a photograph, 1,800 iterations.",
        "20.364061838193976 -> 30.49940599123646 (+10.135); loss .009642",
        "dip/denoising/F16_GT.png",
    ),
    Claim("S2-4", "Halting at the right iteration leaves the noise out.", NONE, "dip/denoising/F16_GT.png"),
    Claim("S2-5", "x4 of a zebra, 576x384: bicubic and nearest.", "23.1048; 20.8212", "dip/sr/zebra_GT.png"),
    Claim("S2-6", "The same by the prior.", "23.13093518764635", "dip/sr/zebra_GT.png"),
    Claim("S2-7", "The prior removes noise and repairs pictures without training data.", NONE, "dip"),
)

_SURVEY = (
    Claim("S3-1", "PSNR = 10 log10(MAX^2 / MSE), with the mean over all values.", "a definition"),
    Claim("S3-2", "Data terms: x - x0; d(x) - x0, with d by a factor; (x - x0) * mask.", "definitions"),
    Claim(
        "S3-3",
        "Denoising of nine colour images comes close to CBM3D by averages, closer with two runs.",
        "29.22, 30.43, 31.00; CBM3D 31.42 (of the paper that it reads)",
        "sets/set9",
    ),
    Claim("S3-4", "It beats non-local means.", "30.26 (of that paper)", "sets/set9"),
    Claim("S3-5", "A known noise model can be built in.", NONE, "sets/set14"),
    Claim(
        "S3-6",
        "Super-resolution is much better than bicubic.",
        "Set5 29.90 / 28.43, Set14 27.00 / 26.05 (of that paper)",
        "sets/set5",
    ),
    Claim(
        "S3-7",
        "Super-resolution is just below SRResNet and LapSRN, and no match for SRGAN and EnhanceNet.",
        NONE,
        barred=_NO_WEIGHTS,
    ),
    Claim(
        "S3-8",
        "Inpainting is ahead of convolutional sparse coding.",
        "33.48 / 31.19, half of the pixels of 11 images (of that paper)",
        "sets/inpaint11",
    ),
    Claim("S3-9", "Inpainting is level with a trained completion network.", NONE, barred=_NO_WEIGHTS),
    Claim("S3-10", "It fails at large holes and in faces.", NONE, "sets/set5/head.png"),
    Claim("S3-11", "Pre-images are far better than those of total variation.", NONE, "dip/feature_inversion, weights"),
    Claim(
        "S3-12",
        "Flash and no-flash: the light of the dark shot, less noise, and less of the flash's shadows than the joint "
        "bilateral filter leaves.",
        NONE,
        "sets/set14, dip/flash_no_flash",
    ),
    Claim("S3-13", "A fit takes minutes an image on a GPU.", NONE, "dip/denoising/F16_GT.png"),
    Claim("S3-14", "Rate, depth and stop govern the result; fewer iterations keep noise out.", NONE, "sets/set14"),
    Claim("S3-15", "Is there one network for all images?", "an open question", "sets/set14, mnist"),
)

CLAIMS: dict[str, Claim] = {claim.id: claim for claim in (*_COURSE_REPORT, *_SLIDES, *_LAB_REPORT, *_SURVEY)}
