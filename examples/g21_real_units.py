"""How do I get from normalised thetas back to real units?

Question: I scaled kilometres and prices to 0..1 before gradient descent and got θ0 = 0.936 and
θ1 = -0.995. What is the price of a car with 50,000 km?

Answer: put the scaling into the parameters. With x' = (x - x_min)/(x_max - x_min), the same for y,
and y' = θ0 + θ1·x', the real slope is θ1·(y_max - y_min)/(x_max - x_min), and the real intercept
follows from x_min and y_min. `net.fold_scaling` does that for any network with a linear last layer.

Lesson: scale for the optimizer, never for the user: fold the scaling into the first and the last
layer, and nobody has to remember it.
"""

import numpy as np

import fastbp as fb

CARS = """240000,3650 139800,3800 150500,4400 185530,4450 176000,5250 114800,5350 166800,5800
89000,5990 144500,5999 84000,6200 82029,6390 63060,6390 74000,6600 97500,6800 67000,6800 76025,6900
48235,6900 93000,6990 60949,7490 65674,7555 54000,7990 68500,7990 22899,7990 61789,8290"""
THETA0, THETA1 = 0.9362124793084768, -0.9953762249792935  # what gradient descent had come to


def main():
    km, price = np.array([car.split(",") for car in CARS.split()], float).T
    km_scaler, price_scaler = fb.Scaler.minmax(km), fb.Scaler.minmax(price)
    line = fb.Network(1, fb.Dense(1))
    scaled = line.pack([([[THETA1]], [THETA0])])
    real = line.fold_scaling(scaled, km_scaler, price_scaler)
    slope, intercept = real
    print(f"price = {intercept:.4f} {slope:+.8f}·km")

    x = np.append(km, 50_000.0).reshape(-1, 1)
    long_way = price_scaler.inverse_transform(line.forward(scaled, km_scaler.transform(x)))
    direct = line.forward(real, x)
    apart = np.abs(direct - long_way).max() / np.abs(direct).max()
    print(f"scaled and scaled back, or at once: {apart:.0e} apart, relative to the largest")
    print(f"50,000 km: {direct[-1, 0]:.4f}")

    scaled_data = km_scaler.transform(x[:-1]), price_scaler.transform(price)
    best = fb.fit(line, *scaled_data, method="trf").params
    best = line.fold_scaling(best, km_scaler, price_scaler)
    print(f"the least squares line says {line.forward(best, x)[-1, 0]:.4f}")
    return {"km": km, "price": price, "real": real, "predicted": direct[:, 0], "best": best}


if __name__ == "__main__":
    main()
