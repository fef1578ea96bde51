import com.android.apksig.ApkSigner;
import com.android.apksig.ApkVerifier;
import java.io.File;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.X509Certificate;
import java.util.List;

/** KEYSTORE UNSIGNED SIGNED PAGE: aligns native libraries to pages, signs with schemes 2 and 3, verifies, and prints what it found as JSON. */
class Sign {
    public static void main(String[] arguments) throws Exception {
        char[] password = "android".toCharArray();
        KeyStore store = KeyStore.getInstance(new File(arguments[0]), password);
        PrivateKey key = (PrivateKey) store.getKey("debug", password);
        X509Certificate certificate = (X509Certificate) store.getCertificate("debug");
        File signed = new File(arguments[2]);
        int page = Integer.parseInt(arguments[3]);
        var signer = new ApkSigner.SignerConfig.Builder("debug", key, List.of(certificate)).build();
        new ApkSigner.Builder(List.of(signer))
                .setInputApk(new File(arguments[1]))
                .setOutputApk(signed)
                .setV1SigningEnabled(false)
                .setV2SigningEnabled(true)
                .setV3SigningEnabled(true)
                .setAlignmentPreserved(false)
                .setLibraryPageAlignmentBytes(page)
                .build()
                .sign();
        var found = new ApkVerifier.Builder(signed).build().verify();
        if (!found.isVerified()) {
            throw new IllegalStateException(found.getAllErrors().toString());
        }
        System.out.printf("{\"v2\": %b, \"v3\": %b}%n", found.isVerifiedUsingV2Scheme(), found.isVerifiedUsingV3Scheme());
    }
}
